package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
)

const (
	// valueLimit limits a value, in bytes.
	valueLimit = 4 << 10
	// entryLimit limits all values of an entry together, in bytes. If they are longer, each
	// is truncated to foreign.MaxText.
	entryLimit = 8 << 10
	// identifier is the SYSLOG_IDENTIFIER, which journalctl shows before the message and -t
	// selects.
	identifier = "dpsd"
)

// jsonLines formats entries as lines of JSON, for programs.
func jsonLines() func(zapcore.Entry, []zapcore.Field) record {
	encoder := zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey: "time", LevelKey: "level", MessageKey: "event",
		EncodeTime:     zapcore.RFC3339TimeEncoder,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder,
	})
	return func(e zapcore.Entry, fields []zapcore.Field) record {
		// The encoder's state must not be shared, so it is cloned.
		line, err := encoder.Clone().EncodeEntry(e, fields)
		if err != nil {
			return record{line: fmt.Appendf(nil, "{\"event\":%q,\"error\":%q}\n", e.Message, err)}
		}
		defer line.Free()
		return record{line: bytes.Clone(line.Bytes())}
	}
}

// sentences formats entries as sentences, for people. layout is the layout of the time.
func sentences(layout string) func(zapcore.Entry, []zapcore.Field) record {
	return func(e zapcore.Entry, fields []zapcore.Field) record {
		return record{line: fmt.Appendf(nil, "%s %-5s %s\n", e.Time.Format(layout), e.Level, event.Message(e.Message, values(fields)))}
	}
}

// toSyslog formats entries for the system logger, and as sentences in case it is not running.
func toSyslog(pid int) func(zapcore.Entry, []zapcore.Field) record {
	sentence := sentences(time.RFC3339)
	return func(e zapcore.Entry, fields []zapcore.Field) record {
		r := sentence(e, fields)
		r.datagram = syslogMessage(priority(e), e.Time, pid, event.Message(e.Message, values(fields)))
		return r
	}
}

// syslogMessage returns a message in the format of syslog(3): RFC 3164, section 4.1, with local
// time and without a host name.
func syslogMessage(p event.Priority, at time.Time, pid int, text string) []byte {
	const daemon = 3 << 3 // the facility
	return fmt.Appendf(nil, "<%d>%s %s[%d]: %s", daemon|int(p), at.Local().Format(time.Stamp), identifier, pid, text)
}

// structured formats entries for the journal, and as lines of JSON in case there is no
// journal.
func structured() func(zapcore.Entry, []zapcore.Field) record {
	line := jsonLines()
	return func(e zapcore.Entry, fields []zapcore.Field) record {
		r := line(e, fields)
		r.datagram = encode(assignments(e, values(fields)))
		return r
	}
}

// clean makes the texts of fields safe to display, whatever their origin, and limits their
// length.
func clean(fields []zapcore.Field) []zapcore.Field {
	bounded := func(limit int) (all []zapcore.Field, size int) {
		for _, f := range fields {
			if text, is := textOf(f); is {
				text = foreign.Lines(text, limit)
				f, size = zap.String(f.Key, text), size+len(text)
			}
			all = append(all, f)
		}
		return all, size
	}
	all, size := bounded(valueLimit)
	if size > entryLimit {
		all, _ = bounded(foreign.MaxText)
	}
	return all
}

// textOf returns the text of a field, if it has one.
func textOf(f zapcore.Field) (string, bool) {
	switch f.Type {
	case zapcore.StringType:
		return f.String, true
	case zapcore.ErrorType, zapcore.StringerType:
		text, is := values([]zapcore.Field{f})[f.Key].(string)
		return text, is
	}
	return "", false
}

// values evaluates fields.
func values(fields []zapcore.Field) map[string]any {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	return m.Fields
}

// assignments returns the fields of a journal entry, see systemd.journal-fields(7).
func assignments(e zapcore.Entry, values map[string]any) map[string]string {
	entry := map[string]string{
		"MESSAGE":           event.Message(e.Message, values),
		"PRIORITY":          strconv.Itoa(int(priority(e))),
		"MESSAGE_ID":        event.MessageID(e.Message),
		"SYSLOG_IDENTIFIER": identifier,
		"DPSD_EVENT":        e.Message,
		// The time of the event: journald's timestamp is the time at which it read the
		// entry.
		"DPSD_TIME": e.Time.UTC().Format(time.RFC3339Nano),
	}
	if code, is := values["fault"].(string); is {
		entry["MESSAGE_ID"] = fault.Code(code).MessageID()
	}
	for name, value := range values {
		if !event.Empty(value) {
			entry[Field(name)] = text(value)
		}
	}
	return entry
}

// priority returns the priority of the catalogue, or debug for a repeated event that is
// logged at level debug.
func priority(e zapcore.Entry) event.Priority {
	if e.Level == zapcore.DebugLevel {
		return event.Debug
	}
	known, _ := event.Describe(e.Message)
	switch {
	case known.Priority != 0:
		return known.Priority
	case e.Level >= zapcore.ErrorLevel:
		return event.Error
	case e.Level == zapcore.WarnLevel:
		return event.Warning
	}
	return event.Info
}

// Field returns the journal's name of a field: DPSD_ and the words of the name in capitals.
// For example, deviceId becomes DPSD_DEVICE_ID. Characters other than ASCII letters and
// digits become underscores.
func Field(name string) string {
	var b strings.Builder
	b.WriteString("DPSD_")
	before := ' '
	for _, r := range name {
		if unicode.IsUpper(r) && (unicode.IsLower(before) || unicode.IsDigit(before)) {
			b.WriteByte('_')
		}
		before = r
		if r = unicode.ToUpper(r); r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else {
			b.WriteByte('_')
		}
	}
	return b.String()
}

// text returns the value of a field as it appears in a line of JSON.
func text(value any) string {
	switch v := value.(type) {
	case time.Time:
		return v.Format(time.RFC3339)
	case string:
		return v
	}
	return fmt.Sprint(value)
}

// encode encodes an entry in journald's native protocol: NAME=value, or the name, the
// length and the value if the value contains line feeds.
func encode(entry map[string]string) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(entry)) {
		value := entry[name]
		b.WriteString(name)
		if strings.Contains(value, "\n") {
			b.WriteByte('\n')
			b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(value))))
		} else {
			b.WriteByte('=')
		}
		b.WriteString(value)
		b.WriteByte('\n')
	}
	return b.Bytes()
}
