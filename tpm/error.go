package tpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/google/go-tpm/tpm2"
)

// Kind says what a caller can do about an error.
type Kind int

// The kinds of errors.
const (
	// Failed is an error that none of the other kinds describes. Try again later.
	Failed Kind = iota
	// Unavailable means that there is no TPM, that it cannot be opened, or that the
	// connection to it was lost. Err wraps fs.ErrNotExist, fs.ErrPermission or another cause.
	// The TPM may become available later.
	Unavailable
	// Busy means that the TPM did not accept a command until the deadline, or has no memory
	// for another key. Try again later.
	Busy
	// Slow means that the TPM did not answer before the deadline. Try again later.
	Slow
	// LockedOut means that wrong passwords have locked the TPM for the keys that it protects
	// against guessing. It unlocks itself after minutes to hours.
	LockedOut
	// Unusable means that this TPM cannot decrypt the file: it was cleared or replaced since
	// the file was created, the file is from another machine, or its persistent parent is
	// gone. A new key is necessary.
	Unusable
	// Unsupported means that the TPM or dpsd does not support the algorithm of the key, which
	// the error names.
	Unsupported
	// Protected means that the key, its parent or the owner has a password.
	Protected
	// Policy means that the key requires a policy.
	Policy
	// Damaged means that the file is not a valid TSS2 file.
	Damaged
)

// Error is the error of all functions of this package.
type Error struct {
	Kind Kind
	// Op is what dpsd tried to do, such as "load the key".
	Op string
	// Err is the cause.
	Err error
}

// Error returns what dpsd tried to do, and the cause.
func (e *Error) Error() string { return "cannot " + e.Op + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// fail returns an error of a kind. explain adds the operation.
func fail(kind Kind, format string, a ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, a...)}
}

// explain converts an error of an operation to an *Error.
func explain(op string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		if e.Op == "" {
			return &Error{e.Kind, op, e.Err}
		}
		return e
	}
	kind, text := kindOf(err)
	if text != "" {
		err = fmt.Errorf("%s: %w", text, err)
	}
	return &Error{kind, op, err}
}

// kindOf classifies an error. If the text of the error does not explain it, kindOf also returns an
// explanation.
func kindOf(err error) (Kind, string) {
	rc, is := errors.AsType[tpm2.TPMRC](err)
	rc &= 0xffff // without the layer, which the kernel sets if it refuses a command that the TPM does not have
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIME), errors.Is(err, syscall.ETIMEDOUT):
		return Slow, "the TPM did not answer in time"
	case errors.Is(err, context.Canceled):
		return Failed, ""
	case isInUse(err):
		return Busy, "another program is using the TPM"
	case errors.Is(err, fs.ErrNotExist):
		return Unavailable, "this machine has no TPM, or it has not appeared yet"
	case errors.Is(err, fs.ErrPermission):
		return Unavailable, "dpsd is not allowed to open the TPM"
	case errors.As(err, new(*lost)):
		return Unavailable, "dpsd cannot communicate with the TPM"
	case !is:
		return Failed, ""
	case isBusy(rc):
		return Busy, "the TPM did not accept the command in time"
	case rc == tpm2.TPMRCLockout:
		return LockedOut, "wrong passwords have locked the TPM"
	case rc == tpm2.TPMRCObjectMemory, rc == tpm2.TPMRCObjectHandles, rc == tpm2.TPMRCMemory, rc == tpm2.TPMRCSessionMemory, rc == tpm2.TPMRCSessionHandles:
		return Busy, "the memory of the TPM is full of other programs' keys"
	case rc == tpm2.TPMRCInitialize, rc == tpm2.TPMRCFailure, rc == tpm2.TPMRCUpgrade, rc == tpm2.TPMRCReboot:
		return Unavailable, "the TPM is not operational"
	case rc >= tpm2.TPMRCReferenceH0 && rc <= tpm2.TPMRCReferenceS6:
		return Unavailable, "the TPM was restarted"
	case errors.Is(rc, tpm2.TPMRCAuthFail), errors.Is(rc, tpm2.TPMRCBadAuth):
		return Protected, "the TPM requires a password"
	case errors.Is(rc, tpm2.TPMRCIntegrity):
		return Unusable, "this TPM cannot decrypt the key: the TPM was cleared or replaced, or the file is from another machine"
	case rc == tpm2.TPMRCCommandCode,
		errors.Is(rc, tpm2.TPMRCCurve), errors.Is(rc, tpm2.TPMRCScheme), errors.Is(rc, tpm2.TPMRCHash), errors.Is(rc, tpm2.TPMRCAsymmetric), errors.Is(rc, tpm2.TPMRCSymmetric), errors.Is(rc, tpm2.TPMRCKeySize):
		return Unsupported, "the TPM does not support the algorithm"
	case rc == tpm2.TPMRCPolicy, errors.Is(rc, tpm2.TPMRCPolicyFail):
		return Policy, "the key requires a policy"
	}
	return Failed, ""
}
