package classify

import (
	"fmt"

	"github.com/dpsd-project/dpsd/fault"
)

// StageError is an error with the stage in which it occurred.
type StageError struct {
	Stage fault.Stage
	Err   error
}

func (e *StageError) Error() string { return e.Err.Error() }
func (e *StageError) Unwrap() error { return e.Err }

// At returns err as an error of the stage, and nil if err is nil.
func At(stage fault.Stage, err error) error {
	if err == nil {
		return nil
	}
	return &StageError{stage, err}
}

// PayloadError means that payload_file cannot be sent.
type PayloadError struct {
	Path string
	Err  error
}

func (e *PayloadError) Error() string { return fmt.Sprintf("payload_file %s: %v", e.Path, e.Err) }
func (e *PayloadError) Unwrap() error { return e.Err }
