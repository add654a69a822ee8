package simulator

import (
	"crypto/tls"
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

// ParseEnrollments reads enrollments from TOML. The name is used in errors
// (*FileError, joined); files in it are found relative to its directory and read now.
func ParseEnrollments(name string, r io.Reader) (*Enrollments, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var file struct {
		Enrollments
		Individuals []struct {
			Individual
			CertificateLife duration `toml:"certificate_life"`
		} `toml:"individual"`
		Groups []struct {
			Group
			CertificateLife duration `toml:"certificate_life"`
		} `toml:"group"`
	}
	if err := decodeStrict(name, text, &file); err != nil {
		return nil, err
	}
	e := &file.Enrollments
	for _, i := range file.Individuals {
		i.Individual.CertificateLife = time.Duration(i.CertificateLife)
		e.Individuals = append(e.Individuals, i.Individual)
	}
	for _, g := range file.Groups {
		g.Group.CertificateLife = time.Duration(g.CertificateLife)
		e.Groups = append(e.Groups, g.Group)
	}
	dir := filepath.Dir(name)
	for i := range e.Individuals {
		e.Individuals[i].resolve(dir)
	}
	for i := range e.Groups {
		e.Groups[i].resolve(dir)
	}
	_, problems := compile(e)
	return e, locate(name, text, problems)
}

// resolve makes file names independent of the working directory.
func (a *Attestation) resolve(dir string) {
	for _, f := range []*string{&a.PrimaryKeyFile, &a.SecondaryKeyFile, &a.CAFile} {
		if *f != "" && !filepath.IsAbs(*f) {
			*f = filepath.Join(dir, *f)
		}
	}
}

// decodeKey reads a key as the portal shows it.
func decodeKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return nil, errors.New("the key is not base64")
	}
	if len(key) < 16 || len(key) > 64 {
		return nil, fmt.Errorf("the key has %d bytes, not 16 to 64", len(key))
	}
	return key, nil
}

// entry is an enrollment made ready for checking.
type entry struct {
	name       string
	individual string // registration ID, "" for a group
	deviceID   string
	keys       [][]byte
	roots      *x509.CertPool
	thumbprint string
	grant      Grant
	hubs       []Hub // to choose from
	latencies  []Latency
}

// ready compiles enrollments that were made in Go.
func ready(e *Enrollments) ([]entry, error) {
	entries, problems := compile(e)
	errs := make([]error, 0, len(problems))
	for _, p := range problems {
		errs = append(errs, &FileError{File: "enrollments", Key: fmt.Sprintf("%s[%d].%s", p.table, p.index, p.key), Problem: p.text})
	}
	return entries, errors.Join(errs...)
}

// compile checks enrollments and reads their files.
func compile(e *Enrollments) ([]entry, []problem) {
	entries := make([]entry, 0, len(e.Individuals)+len(e.Groups))
	problems := e.checkHubs()
	// The rows of a nested table are numbered throughout the file.
	customs := map[string]int{}
	grant := func(table string, n *entry, bad func(key, format string, args ...any)) {
		n.hubs, n.latencies = e.candidates(n.grant.Hubs), e.Latencies
		n.check(e, bad)
		for i := range n.grant.Custom {
			row := customs[table]
			customs[table]++
			n.checkCustom(&n.grant.Custom[i], func(key, format string, args ...any) {
				problems = append(problems, problem{table + ".custom", row, key, fmt.Sprintf(format, args...)})
			})
		}
	}
	seen := map[string]bool{}
	for i, d := range e.Individuals {
		bad := func(key, format string, args ...any) {
			problems = append(problems, problem{"individual", i, key, fmt.Sprintf(format, args...)})
		}
		if !IsRegistrationID(d.RegistrationID) {
			bad("registration_id", "%q is not a registration ID", d.RegistrationID)
		}
		if seen[strings.ToLower(d.RegistrationID)] {
			bad("registration_id", "%q is enrolled twice", d.RegistrationID)
		}
		seen[strings.ToLower(d.RegistrationID)] = true
		n := entry{name: d.RegistrationID, individual: d.RegistrationID, deviceID: d.DeviceID, grant: d.Grant}
		n.thumbprint = strings.ToLower(strings.ReplaceAll(d.Thumbprint, ":", ""))
		if raw, err := hex.DecodeString(n.thumbprint); err != nil || !slices.Contains([]int{0, 20, 32}, len(raw)) {
			bad("thumbprint", "is not the hex of a SHA-1 or SHA-256")
		}
		d.compile(&n, n.thumbprint != "", bad)
		grant("individual", &n, bad)
		entries = append(entries, n)
	}
	for i, g := range e.Groups {
		bad := func(key, format string, args ...any) {
			problems = append(problems, problem{"group", i, key, fmt.Sprintf(format, args...)})
		}
		if g.Name == "" {
			bad("name", "is missing")
		}
		n := entry{name: g.Name, grant: g.Grant}
		g.compile(&n, false, bad)
		grant("group", &n, bad)
		entries = append(entries, n)
	}
	return entries, problems
}

// check checks the grant of an entry.
func (n *entry) check(e *Enrollments, bad func(key, format string, args ...any)) {
	g := &n.grant
	if g.Payload != "" {
		var object map[string]any
		if json.Unmarshal([]byte(g.Payload), &object) != nil {
			bad("payload", "is not a JSON object")
		}
	}
	for _, name := range g.Hubs {
		switch {
		case !isHostName(name):
			bad("hubs", "%q is not a host name", name)
		case len(e.Hubs) > 0 && !e.linked(name):
			bad("hubs", "%q is not a linked hub", name)
		}
	}
	switch g.Allocation {
	case "", "hashed":
	case "static":
		if len(n.hubs) != 1 {
			bad("allocation", "static is for one hub, and there are %d", len(n.hubs))
		}
	case "lowest-latency":
		if len(e.Latencies) == 0 {
			bad("allocation", "lowest-latency needs a [[latency]]")
		}
	case "custom":
		if len(g.Custom) == 0 {
			bad("allocation", "custom needs a custom table")
		}
	default:
		bad("allocation", "%q is none of hashed, static, lowest-latency, custom", g.Allocation)
	}
	if len(g.Custom) > 0 && g.Allocation != "custom" {
		bad("custom", "is for the allocation custom only")
	}
	if !slices.Contains([]string{"", "migrate", "reset", "never"}, g.Reprovision) {
		bad("reprovision", "%q is none of migrate, reset, never", g.Reprovision)
	}
	if g.CertificateLife < 0 {
		bad("certificate_life", "%v is negative", g.CertificateLife)
	}
}

func (a *Attestation) compile(n *entry, thumbprint bool, bad func(key, format string, args ...any)) {
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
		if text == "" {
			return
		}
		raw, err := decodeKey(text)
		if err != nil {
			bad(from, "%v", err)
			return
		}
		n.keys = append(n.keys, raw)
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
			content, err := os.ReadFile(a.CAFile)
			if err != nil {
				bad("ca_file", "%v", err)
				return
			}
			text = content
		}
		if thumbprint == (len(text) > 0) {
			bad("type", "an x509 enrollment needs either a CA or, individually, a thumbprint")
			return
		}
		if thumbprint {
			return
		}
		certificates, err := parseCertificates(text)
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

// A refusal is why the service does not serve a device: an error code of its, and a text.
type refusal struct {
	code    int
	message string
	reason  string // for the packet log only
}

// find returns the individual enrollment of a device.
func find(entries []entry, registrationID string) *entry {
	for i := range entries {
		if entries[i].individual != "" && strings.EqualFold(entries[i].individual, registrationID) {
			return &entries[i]
		}
	}
	return nil
}

// byToken finds the enrollment whose key has signed the token.
func byToken(entries []entry, scope, registrationID, password string, now time.Time) (*entry, *refusal) {
	unauthorized := func(reason string) (*entry, *refusal) {
		return nil, &refusal{401000, "Unauthorized", reason}
	}
	token, err := parseToken(password)
	if err != nil {
		return unauthorized(err.Error())
	}
	if err := token.check(scope, registrationID, now); err != nil {
		return unauthorized(err.Error())
	}
	if n := find(entries, registrationID); n != nil {
		for _, key := range n.keys {
			if token.signedBy(key) {
				return n, nil
			}
		}
		return unauthorized("no key of the individual enrollment has signed the token")
	}
	groups := false
	for i := range entries {
		n := &entries[i]
		if n.individual != "" {
			continue
		}
		for _, key := range n.keys {
			groups = true
			if token.signedBy(deriveKey(key, registrationID)) {
				return n, nil
			}
		}
	}
	if !groups {
		// Nothing to verify against: the device is unknown.
		return nil, &refusal{404201, "Registration not found.", "no symmetric-key enrollment fits"}
	}
	return unauthorized("no group key has signed the token")
}

// byCertificate finds the enrollment that trusts the client's certificate.
func byCertificate(entries []entry, registrationID string, state tls.ConnectionState, now time.Time) (*entry, *refusal) {
	invalid := func(reason string) (*entry, *refusal) {
		return nil, &refusal{401002, "Invalid certificate.", reason}
	}
	leaf := state.PeerCertificates[0]
	verify := func(roots *x509.CertPool) error {
		intermediates := x509.NewCertPool()
		for _, c := range state.PeerCertificates[1:] {
			intermediates.AddCert(c)
		}
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: intermediates, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		return err
	}
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return invalid("the certificate is not valid now")
	}
	if n := find(entries, registrationID); n != nil {
		switch {
		case n.thumbprint != "":
			if slices.Contains(thumbprints(leaf), n.thumbprint) {
				return n, nil
			}
			return invalid("the certificate's thumbprint is another")
		case n.roots != nil:
			if err := verify(n.roots); err != nil {
				return invalid(err.Error())
			}
			return n, nil
		}
		return invalid("the individual enrollment is for a symmetric key")
	}
	reason := "there is no x509 group"
	for i := range entries {
		if n := &entries[i]; n.individual == "" && n.roots != nil {
			err := verify(n.roots)
			if err == nil {
				return n, nil
			}
			reason = err.Error()
		}
	}
	return invalid(reason)
}
