// Package enroll holds the enrollments of a simulated service: which devices may register, how
// they prove their identity, and to which hub each is assigned.
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
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/simulator/tomlfile"
)

// Enrollments define which devices may register and what each device gets. Individual
// enrollments take precedence over groups.
type Enrollments struct {
	// Hubs are the linked hubs. If it is empty, they are the hubs that the enrollments name, or
	// the default hub if the enrollments name none.
	Hubs []Hub `toml:"hub"`
	// DefaultHub is the host name of the hub of an enrollment that names none, if no hub is
	// linked. If it is empty, the constant DefaultHub applies. A file cannot set it.
	DefaultHub string `toml:"-"`
	// Latencies define the latency between devices and hubs. The first entry that matches a
	// device applies.
	Latencies   []Latency    `toml:"latency"`
	Individuals []Individual `toml:"individual"`
	Groups      []Group      `toml:"group"`
}

// Grant is what an enrollment gives to a device.
type Grant struct {
	// Hubs are the host names of the hubs to choose from. If it is empty, all linked hubs are
	// candidates.
	Hubs []string `toml:"hubs,omitempty"`
	// Allocation is how a hub is chosen: "hashed" by registration ID and weight,
	// which is the default, "static", "lowest-latency" or "custom".
	Allocation string `toml:"allocation,omitempty"`
	// Custom replaces the function of a custom allocation. The first entry that matches a
	// device applies.
	Custom []Custom `toml:"custom,omitempty"`
	// Reprovision is what happens to the data of a device that registers again and is
	// assigned to a different hub: "migrate", which is the default, or "reset".
	// With "never" the device keeps its hub.
	Reprovision string `toml:"reprovision,omitempty"`
	// Payload is a JSON object that is returned to the device, or "".
	Payload string `toml:"payload,omitempty"`
	// CertificateLife is the lifetime of a certificate that is issued for a CSR; 0 means 30 days.
	CertificateLife time.Duration `toml:"-"`
	// NoCertificates refuses a CSR, like an enrollment without a credential policy.
	NoCertificates bool `toml:"no_certificates,omitempty"`
	// Disabled enrollments answer a correct credential with the status "disabled".
	Disabled bool `toml:"disabled,omitempty"`
	// Properties is a JSON object with the members of the enrollment that the service API
	// stores and returns, but that have no effect on a registration, such as initialTwin.
	Properties string `toml:"properties,multiline,omitempty"`
}

// Attestation is how a device proves its identity: by exactly one of keys, a CA, or (for an
// individual) a thumbprint or a certificate.
type Attestation struct {
	// Type is "symmetric-key" or "x509".
	Type string `toml:"type,omitempty"`
	// PrimaryKey and SecondaryKey are base64 of 16 to 64 bytes. In a group, device keys are
	// derived from them.
	PrimaryKey   string `toml:"primary_key,omitempty"`
	SecondaryKey string `toml:"secondary_key,omitempty"`
	// PrimaryKeyFile and SecondaryKeyFile name files that contain such a key.
	PrimaryKeyFile   string `toml:"primary_key_file,omitempty"`
	SecondaryKeyFile string `toml:"secondary_key_file,omitempty"`
	// CA is PEM text, and CAFile is a file with such text: a root or an intermediate certificate.
	CA     string `toml:"ca,multiline,omitempty"`
	CAFile string `toml:"ca_file,omitempty"`
}

// Individual is the enrollment of one device.
type Individual struct {
	RegistrationID string `toml:"registration_id,omitempty"`
	// DeviceID is the device ID at the hub. If it is empty, it is the registration ID.
	DeviceID string `toml:"device_id,omitempty"`
	// Thumbprint is the SHA-1 or SHA-256 hash of the certificate in hexadecimal.
	Thumbprint string `toml:"thumbprint,omitempty"`
	// Certificate is PEM text: the certificate of the device, and optionally a second one.
	Certificate string `toml:"certificate,multiline,omitempty"`
	Attestation
	Grant
}

// Group is an enrollment group. It accepts every device with a matching derived key or certificate.
type Group struct {
	Name string `toml:"name"`
	Attestation
	Grant
}

// Parse reads enrollments from TOML. The name appears in errors, which are one or more of type
// *tomlfile.Error, joined. File names are relative to the directory of name, and Parse reads
// these files.
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

// ReadFile reads enrollments from a file, see Parse.
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

// DecodeKey decodes a key in the form that the Azure portal shows.
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

// Entry is a compiled enrollment. The zero value is for a device for which no enrollment was
// looked up.
type Entry struct {
	Grant
	DeviceID string // "": the registration ID

	// Group is the name of the enrollment group, or "" for an individual enrollment.
	Group string

	individual  string // registration ID, "" for a group
	keys        [][]byte
	roots       *x509.CertPool
	cas         []*x509.Certificate // in roots
	caFile      string              // the file that has them, or ""
	issuers     []string            // names of the roots
	thumbprints []string            // of an individual's certificates
	hubs        []Hub               // to choose from
	latencies   []Latency
}

// Entries holds all compiled enrollments.
type Entries []Entry

// Compile compiles enrollments and reads their files. Its error is of the same kind as that of
// Parse.
func Compile(e *Enrollments) (Entries, error) {
	entries, problems := compile(e)
	return entries, problems.Error("enrollments", nil)
}

// compile checks enrollments and reads their files.
func compile(e *Enrollments) (Entries, tomlfile.Problems) {
	entries := make(Entries, 0, len(e.Individuals)+len(e.Groups))
	var problems tomlfile.Problems
	e.checkHubs(&problems)
	// The entries of a nested table are numbered across the whole file.
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
		if d.Thumbprint != "" {
			thumbprint := strings.ToLower(strings.ReplaceAll(d.Thumbprint, ":", ""))
			if raw, err := hex.DecodeString(thumbprint); err != nil || len(raw) != 20 && len(raw) != 32 {
				bad("thumbprint", "is not a SHA-1 or SHA-256 hash in hex")
			}
			n.thumbprints = append(n.thumbprints, thumbprint)
		}
		if d.Certificate != "" {
			if d.Thumbprint != "" {
				bad("certificate", "cannot be combined with thumbprint")
			}
			certificates, err := Certificates([]byte(d.Certificate))
			if err != nil {
				bad("certificate", "%v", err)
			}
			if len(certificates) > 2 {
				bad("certificate", "has %d certificates, not 1 or 2", len(certificates))
			}
			for _, c := range certificates {
				n.thumbprints = append(n.thumbprints, thumbprints(c)[1])
			}
		}
		d.compile(&n, bad)
		grant("individual", &n, bad)
	}
	for i, g := range e.Groups {
		bad := problems.In("group", i)
		if g.Name == "" {
			bad("name", "is missing")
		}
		n := Entry{Grant: g.Grant, Group: g.Name}
		g.compile(&n, bad)
		grant("group", &n, bad)
	}
	return entries, problems
}

// check validates the grant of an entry.
func (n *Entry) check(e *Enrollments, bad tomlfile.Reporter) {
	g := &n.Grant
	checkObject("payload", g.Payload, bad)
	checkObject("properties", g.Properties, bad)
	for _, name := range g.Hubs {
		switch {
		case !IsHostName(name):
			bad("hubs", "%q is not a host name", name)
		case !e.linked(name):
			bad("hubs", "%q is not a linked hub", name)
		}
	}
	bad.OneOf("allocation", g.Allocation, "hashed", "static", "lowest-latency", "custom")
	switch custom := g.Allocation == "custom"; {
	case g.Allocation == "static" && len(n.hubs) != 1:
		bad("allocation", "static requires exactly one hub, not %d", len(n.hubs))
	case g.Allocation == "lowest-latency" && len(e.Latencies) == 0:
		bad("allocation", "lowest-latency requires a [[latency]]")
	case custom && len(g.Custom) == 0:
		bad("allocation", "custom requires a custom table")
	case !custom && len(g.Custom) > 0:
		bad("custom", "is allowed only with the allocation custom")
	}
	bad.OneOf("reprovision", g.Reprovision, "migrate", "reset", "never")
	if g.CertificateLife < 0 {
		bad("certificate_life", "%v is negative", g.CertificateLife)
	}
}

// checkObject validates a JSON object; "" means none.
func checkObject(key, text string, bad tomlfile.Reporter) bool {
	var object map[string]any
	if text == "" || json.Unmarshal([]byte(text), &object) == nil {
		return true
	}
	bad(key, "is not a JSON object")
	return false
}

// compile adds the keys or the CA to an entry, which already has its thumbprints.
func (a *Attestation) compile(n *Entry, bad tomlfile.Reporter) {
	thumbprint := len(n.thumbprints) > 0
	key := func(name, text, file string) {
		from := name
		if file != "" {
			if text != "" {
				bad(name, "is set twice, here and in a file")
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
			bad("type", "a symmetric-key enrollment requires primary_key or primary_key_file")
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
			bad("type", "an x509 enrollment requires either a CA or, for an individual enrollment, a thumbprint or a certificate")
			return
		case thumbprint:
			return
		}
		certificates, err := Certificates(text)
		if err != nil {
			bad("ca_file", "%v", err)
			return
		}
		n.roots, n.cas, n.caFile = x509.NewCertPool(), certificates, a.CAFile
		for _, c := range certificates {
			n.roots.AddCert(c)
			n.issuers = append(n.issuers, c.Subject.String())
		}
	default:
		bad("type", "%q is neither symmetric-key nor x509", a.Type)
	}
}
