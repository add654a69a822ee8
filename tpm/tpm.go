// Package tpm uses keys in a TPM 2.0, in pure Go.
//
// A TSS2 PEM file contains a key: its public part, and its private part, which is encrypted with
// a parent key that never leaves the TPM. Parse reads such a file without a TPM. A Device creates
// such files, and loads their keys. Only the TPM that created a file can use it.
//
// A Device opens the TPM when one of its methods is called, and closes it when the last Key is
// closed. One goroutine sends one command at a time. Every operation has a deadline, and always
// flushes what it has loaded, even after the deadline. All errors are *Error. dpsd uses only keys
// without a password, never clears a TPM, and never changes the authorization of its owner.
package tpm

import (
	"fmt"
	"time"
)

// Deadline limits an operation if the Device has no other limit. Some TPMs need several
// seconds for an ordinary command.
const Deadline = 30 * time.Second

// Algorithm is the type of a key. The values for asymmetric keys are the same as those of key_type
// in dpsd.toml.
type Algorithm string

// The algorithms. A TPM may not support all of them; Status lists those that it supports.
const (
	P256    Algorithm = "ec-p256"
	P384    Algorithm = "ec-p384"
	P521    Algorithm = "ec-p521"
	RSA2048 Algorithm = "rsa-2048"
	RSA3072 Algorithm = "rsa-3072"
	RSA4096 Algorithm = "rsa-4096"
	// HMAC is a symmetric key for HMAC-SHA256, such as a key of DPS.
	HMAC Algorithm = "hmac-sha256"
)

// Parent is the key that encrypts the private part of a file. The zero value means Owner.
type Parent uint32

// Owner is the usual parent of TSS2 files: whenever a key is loaded, the TPM derives it from the
// seed of the owner, which takes some TPMs several seconds. A Parent from 0x81000000 to 0x81ffffff
// is the handle of a persistent key, which the TPM stores.
const Owner Parent = 0x40000001

// The other hierarchies from whose seed a parent can be derived.
const (
	endorsement Parent = 0x4000000b
	null        Parent = 0x40000007
)

// String returns the handle in hexadecimal.
func (p Parent) String() string { return fmt.Sprintf("0x%08x", uint32(p)) }

// Persistent reports whether the parent is a persistent key.
func (p Parent) Persistent() bool { return p>>24 == 0x81 }
