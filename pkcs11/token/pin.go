package token

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/miekg/pkcs11"
)

// PIN is the user PIN of a token. A token locks itself after a few wrong PINs, so after a token
// has refused a PIN, no PIN is sent to it until a person has removed a file.
type PIN struct {
	// Credentials is the directory that contains the PIN in the file "pin", CREDENTIALS_DIRECTORY
	// of systemd.exec(5).
	Credentials string
	// State is the directory for the file that records that a token refused the PIN,
	// STATE_DIRECTORY of systemd.exec(5).
	State string
}

// text returns the PIN.
func (p PIN) text() (string, error) {
	if p.Credentials == "" {
		return "", refused("the PIN is missing: the unit has no credential")
	}
	text, err := os.ReadFile(filepath.Join(p.Credentials, "pin"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", refused("the PIN is missing: the unit has no credential named pin")
	}
	if err != nil {
		return "", refused("the PIN cannot be read: %v", err)
	}
	if len(trimmed(text)) == 0 {
		return "", refused("the credential named pin is empty")
	}
	return string(trimmed(text)), nil
}

// login logs in, unless that could lock the token.
func (p PIN) login(info pkcs11.TokenInfo, login func(string) error) error {
	if p.State == "" {
		return refused("the unit has no state directory, which is needed to record that a token refused the PIN")
	}
	mark := filepath.Join(p.State, "pin-refused-"+url.PathEscape(info.Label+"-"+info.SerialNumber))
	if _, err := os.Lstat(mark); err == nil {
		return refused("the token %q refused the PIN, and locks itself after a few wrong PINs; correct the PIN, then remove %s", info.Label, mark)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return refused("cannot determine whether the token refused the PIN: %v", err)
	}
	switch {
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return refused("the token %q is locked after too many wrong PINs", info.Label)
	case info.Flags&(pkcs11.CKF_USER_PIN_COUNT_LOW|pkcs11.CKF_USER_PIN_FINAL_TRY) != 0:
		return refused("the last PIN that the token %q received was wrong; log in once with the correct PIN, for example with pkcs11-tool", info.Label)
	}
	text, err := p.text()
	if err != nil {
		return err
	}
	prepared := mark + ".new"
	if err := write(prepared); err != nil {
		return refused("the PIN was not sent, because a refusal could not be recorded: %v", err)
	}
	defer func() { _ = os.Remove(prepared) }() // if the PIN was refused, the file has another name
	err = login(text)
	switch {
	case err == nil, errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)):
		return nil
	case errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)), errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_INVALID)), errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_LEN_RANGE)):
		failed := record(prepared, mark)
		return errors.Join(refused("the token %q refused the PIN; correct it, then remove %s", info.Label, mark), failed)
	case errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_LOCKED)), errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_EXPIRED)):
		return refused("the token %q no longer accepts the PIN: %v", info.Label, err)
	}
	return fmt.Errorf("C_Login: %w", err)
}

// write writes the file that records a refused PIN. login calls write before it sends the PIN, so
// that a wrong PIN is not sent again because the disk is full.
func write(path string) error {
	return os.WriteFile(path, []byte("The token refused the PIN. Remove this file after you have corrected the PIN.\n"), 0o600)
}

// record gives the prepared file its name, and syncs it to disk.
func record(prepared, mark string) error {
	file, err := os.Open(prepared)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := errors.Join(file.Sync(), os.Rename(prepared, mark)); err != nil {
		return err
	}
	directory, err := os.Open(filepath.Dir(mark))
	if err != nil {
		return err
	}
	defer directory.Close()
	return directory.Sync()
}
