// Package enroll holds the enrollments of a simulated service: who may register, with which
// proof, and which hub a device is assigned to.
package enroll

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/simulator/tomlfile"
)

// Enrollments say who may register, and what a device is given. An
// individual enrollment is looked at before the groups.
type Enrollments struct {
	// Hubs are the linked hubs. Empty: every hub that an enrollment names, or
	// if it names none "dpsd-sim.azure-devices.net".
	Hubs []Hub `toml:"hub"`
	// Latencies say how far devices are from the hubs; the first row that fits a device counts.
	Latencies   []Latency    `toml:"latency"`
	Individuals []Individual `toml:"individual"`
	Groups      []Group      `toml:"group"`
}

// Grant is what an enrollment gives to a device.
type Grant struct {
	// Hubs are the hubs to choose from, host names. Empty: all linked hubs.
	Hubs []string `toml:"hubs"`
	// Allocation is how one of them is chosen: "hashed" by registration ID
	// and weight, which is the default, "static", "lowest-latency" or "custom".
	Allocation string `toml:"allocation"`
	// Custom stands for the function of a custom allocation; the first row that fits a device counts.
	Custom []Custom `toml:"custom"`
	// Reprovision is what becomes of the data of a device that comes again
	// and is given another hub: "migrate", which is the default, or "reset".
	// With "never" it keeps its hub.
	Reprovision string `toml:"reprovision"`
	// Payload is a JSON object returned to the device, "" for none.
	Payload string `toml:"payload"`
	// CertificateLife is how long a certificate issued for a CSR is good; 0 is 30 days.
	CertificateLife time.Duration `toml:"-"`
	// NoCertificates refuses a CSR, as an enrollment without a credential policy does.
	NoCertificates bool `toml:"no_certificates"`
	// Disabled enrollments answer a right credential with the status "disabled".
	Disabled bool `toml:"disabled"`
}

// Attestation says how a device proves itself: by exactly one of keys, a CA, or (individually) a thumbprint.
type Attestation struct {
	// Type is "symmetric-key" or "x509".
	Type string `toml:"type"`
	// PrimaryKey and SecondaryKey are base64 of 16 to 64 bytes; in a group the key that device keys are derived from.
	PrimaryKey   string `toml:"primary_key"`
	SecondaryKey string `toml:"secondary_key"`
	// PrimaryKeyFile and SecondaryKeyFile name files with such a key.
	PrimaryKeyFile   string `toml:"primary_key_file"`
	SecondaryKeyFile string `toml:"secondary_key_file"`
	// CA is PEM text, CAFile a file of it: a root or an intermediate.
	CA     string `toml:"ca"`
	CAFile string `toml:"ca_file"`
}

// Individual is the enrollment of one device.
type Individual struct {
	RegistrationID string `toml:"registration_id"`
	// DeviceID is the device ID at the hub; empty is the registration ID.
	DeviceID string `toml:"device_id"`
	// Thumbprint is the SHA-1 or SHA-256 of the certificate, in hex.
	Thumbprint string `toml:"thumbprint"`
	Attestation
	Grant
}

// Group is an enrollment group: every device whose derived key or certificate fits.
type Group struct {
	Name string `toml:"name"`
	Attestation
	Grant
}

// Parse reads enrollments from TOML. The name is used in errors, which are of type
// *tomlfile.Error, joined when there are several; files that it names are found relative to
// its directory and read now.
func Parse(name string, r io.Reader) (*Enrollments, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var file struct {
		Enrollments
		Individuals []struct {
			Individual
			CertificateLife tomlfile.Duration `toml:"certificate_life"`
		} `toml:"individual"`
		Groups []struct {
			Group
			CertificateLife tomlfile.Duration `toml:"certificate_life"`
		} `toml:"group"`
	}
	if err := tomlfile.Decode(name, text, &file); err != nil {
		return nil, err
	}
	e, dir := &file.Enrollments, filepath.Dir(name)
	for _, i := range file.Individuals {
		i.Individual.CertificateLife = time.Duration(i.CertificateLife)
		i.resolve(dir)
		e.Individuals = append(e.Individuals, i.Individual)
	}
	for _, g := range file.Groups {
		g.Group.CertificateLife = time.Duration(g.CertificateLife)
		g.resolve(dir)
		e.Groups = append(e.Groups, g.Group)
	}
	_, problems := compile(e)
	return e, problems.Error(name, text)
}

// ReadFile reads enrollments from a file, as Parse does.
func ReadFile(name string) (*Enrollments, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return Parse(name, bytes.NewReader(text))
}

// resolve makes file names independent of the working directory.
func (a *Attestation) resolve(dir string) {
	for _, f := range []*string{&a.PrimaryKeyFile, &a.SecondaryKeyFile, &a.CAFile} {
		if *f != "" && !filepath.IsAbs(*f) {
			*f = filepath.Join(dir, *f)
		}
	}
}

// DecodeKey reads a key as the portal shows it.
func DecodeKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return nil, errors.New("the key is not base64")
	}
	if len(key) < 16 || len(key) > 64 {
		return nil, fmt.Errorf("the key has %d bytes, not 16 to 64", len(key))
	}
	return key, nil
}

// Entry is an enrollment made ready for checking. The zero value stands for a device that
// no enrollment was looked for.
type Entry struct {
	Grant
	DeviceID string // "": the registration ID

	individual string // registration ID, "" for a group
	keys       [][]byte
	roots      *x509.CertPool
	thumbprint string
	hubs       []Hub // to choose from
	latencies  []Latency
}

// Entries are all enrollments.
type Entries []Entry

// Compile makes enrollments ready and reads their files. The error is as that of Parse.
func Compile(e *Enrollments) (Entries, error) {
	entries, problems := compile(e)
	return entries, problems.Error("enrollments", nil)
}

// compile checks enrollments and reads their files.
func compile(e *Enrollments) (Entries, tomlfile.Problems) {
	entries := make(Entries, 0, len(e.Individuals)+len(e.Groups))
	var problems tomlfile.Problems
	e.checkHubs(&problems)
	// The rows of a nested table are numbered throughout the file.
	customs := map[string]int{}
	grant := func(table string, n *Entry, bad tomlfile.Reporter) {
		n.hubs, n.latencies = e.candidates(n.Hubs), e.Latencies
		n.check(e, bad)
		for i := range n.Custom {
			n.checkCustom(&n.Custom[i], problems.In(table+".custom", customs[table]))
			customs[table]++
		}
		entries = append(entries, *n)
	}
	seen := map[string]bool{}
	for i, d := range e.Individuals {
		bad := problems.In("individual", i)
		if !IsRegistrationID(d.RegistrationID) {
			bad("registration_id", "%q is not a registration ID", d.RegistrationID)
		}
		if seen[strings.ToLower(d.RegistrationID)] {
			bad("registration_id", "%q is enrolled twice", d.RegistrationID)
		}
		seen[strings.ToLower(d.RegistrationID)] = true
		n := Entry{Grant: d.Grant, DeviceID: d.DeviceID, individual: d.RegistrationID}
		n.thumbprint = strings.ToLower(strings.ReplaceAll(d.Thumbprint, ":", ""))
		if raw, err := hex.DecodeString(n.thumbprint); err != nil || !slices.Contains([]int{0, 20, 32}, len(raw)) {
			bad("thumbprint", "is not the hex of a SHA-1 or SHA-256")
		}
		d.compile(&n, bad)
		grant("individual", &n, bad)
	}
	for i, g := range e.Groups {
		bad := problems.In("group", i)
		if g.Name == "" {
			bad("name", "is missing")
		}
		n := Entry{Grant: g.Grant}
		g.compile(&n, bad)
		grant("group", &n, bad)
	}
	return entries, problems
}

// check checks the grant of an entry.
func (n *Entry) check(e *Enrollments, bad tomlfile.Reporter) {
	g := &n.Grant
	checkObject(g.Payload, bad)
	for _, name := range g.Hubs {
		switch {
		case !isHostName(name):
			bad("hubs", "%q is not a host name", name)
		case !e.linked(name):
			bad("hubs", "%q is not a linked hub", name)
		}
	}
	bad.OneOf("allocation", g.Allocation, "hashed", "static", "lowest-latency", "custom")
	switch custom := g.Allocation == "custom"; {
	case g.Allocation == "static" && len(n.hubs) != 1:
		bad("allocation", "static is for one hub, and there are %d", len(n.hubs))
	case g.Allocation == "lowest-latency" && len(e.Latencies) == 0:
		bad("allocation", "lowest-latency needs a [[latency]]")
	case custom && len(g.Custom) == 0:
		bad("allocation", "custom needs a custom table")
	case !custom && len(g.Custom) > 0:
		bad("custom", "is for the allocation custom only")
	}
	bad.OneOf("reprovision", g.Reprovision, "migrate", "reset", "never")
	if g.CertificateLife < 0 {
		bad("certificate_life", "%v is negative", g.CertificateLife)
	}
}

// checkObject checks a payload, "" for none.
func checkObject(payload string, bad tomlfile.Reporter) bool {
	var object map[string]any
	if payload == "" || json.Unmarshal([]byte(payload), &object) == nil {
		return true
	}
	bad("payload", "is not a JSON object")
	return false
}

// compile adds what proves a device to an entry, which has its thumbprint already.
func (a *Attestation) compile(n *Entry, bad tomlfile.Reporter) {
	thumbprint := n.thumbprint != ""
	key := func(name, text, file string) {
		from := name
		if file != "" {
			if text != "" {
				bad(name, "is given twice, here and by a file")
			}
			content, err := os.ReadFile(file)
			if err != nil {
				bad(name+"_file", "%v", err)
				return
			}
			text, from = string(content), name+"_file"
		}
		raw, err := DecodeKey(text)
		switch {
		case text == "":
		case err != nil:
			bad(from, "%v", err)
		default:
			n.keys = append(n.keys, raw)
		}
	}
	switch a.Type {
	case "symmetric-key":
		key("primary_key", a.PrimaryKey, a.PrimaryKeyFile)
		key("secondary_key", a.SecondaryKey, a.SecondaryKeyFile)
		if a.PrimaryKey == "" && a.PrimaryKeyFile == "" {
			bad("type", "a symmetric-key enrollment needs primary_key or primary_key_file")
		}
		if a.CA != "" || a.CAFile != "" || thumbprint {
			bad("type", "a symmetric-key enrollment has no certificates")
		}
	case "x509":
		if a.PrimaryKey+a.SecondaryKey+a.PrimaryKeyFile+a.SecondaryKeyFile != "" {
			bad("type", "an x509 enrollment has no keys")
		}
		text := []byte(a.CA)
		if a.CAFile != "" {
			var err error
			if text, err = os.ReadFile(a.CAFile); err != nil {
				bad("ca_file", "%v", err)
				return
			}
		}
		switch {
		case thumbprint == (len(text) > 0):
			bad("type", "an x509 enrollment needs either a CA or, individually, a thumbprint")
			return
		case thumbprint:
			return
		}
		certificates, err := Certificates(text)
		if err != nil {
			bad("ca_file", "%v", err)
			return
		}
		n.roots = x509.NewCertPool()
		for _, c := range certificates {
			n.roots.AddCert(c)
		}
	default:
		bad("type", "%q is neither symmetric-key nor x509", a.Type)
	}
}
