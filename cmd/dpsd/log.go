package main

import (
	"os"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newLogger writes events with fields: for a person on a terminal, else as
// JSON lines. level is one of those of dpsd.toml.
func newLogger(to *os.File, level string) *zap.Logger {
	enabled, err := zapcore.ParseLevel(level)
	if err != nil {
		enabled = zapcore.InfoLevel // config.Parse lets no other through
	}
	encoding := zapcore.EncoderConfig{
		TimeKey: "time", LevelKey: "level", MessageKey: "event",
		EncodeTime:     zapcore.RFC3339TimeEncoder,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder,
	}
	encoder := zapcore.NewJSONEncoder(encoding)
	if info, err := to.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		encoding.EncodeTime = zapcore.TimeEncoderOfLayout(time.TimeOnly)
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(to), enabled))
}
