// Package aziot converts the config.toml of Azure IoT Edge and the Azure IoT Identity
// Service to a dpsd.toml.
package aziot

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/config/document"
)

// Result is the result of Import.
type Result struct {
	// TOML is a dpsd.toml with the notes as comments. It is "" if the gateway's identity
	// cannot be converted; the notes give the reason.
	TOML string
	// Notes list the keys that are left out and the tasks that remain, in the order of the
	// file.
	Notes []*Note
}

// Note is information for people about a key. It contains no secret.
type Note struct {
	// File, Line and Key are the position; Line is 0 if it is unknown.
	File string
	Line int
	Key  string
	// Text is one line of text.
	Text string
	// Command is the shell command for the task, to be run as root, or "".
	Command string
}

// String returns the note without its command: "config.toml:3: hostname: left out: …".
func (n *Note) String() string {
	where := n.File
	if n.Line > 0 {
		where += fmt.Sprintf(":%d", n.Line)
	}
	return where + ": " + n.Key + ": " + n.Text
}

// Names of the credentials that a result refers to. The unit loads them by these names.
const (
	importedKey         = "dps-primary-key"
	importedCertificate = "dps-certificate"
	importedPrivateKey  = "dps-private-key"
	importedPassword    = "proxy-password"
)

// leftOut gives the reason why a key of an aziot config.toml has no counterpart. The keys
// are those of the templates that aziot-identity-service and aziot-edge install.
var leftOut = map[string]string{
	"hostname":                          "dpsd does not change the host name; %H in registration_id stands for it",
	"local_gateway_hostname":            "dpsd reaches the service directly or through a proxy, not through a parent gateway",
	"parent_hostname":                   "dpsd reaches the service directly or through a proxy, not through a parent gateway",
	"cloud_timeout_sec":                 "dpsd has its own timeouts, transport.connect_timeout and transport.response_timeout",
	"cloud_retries":                     "dpsd does not give up; [retry] sets the delays",
	"dps_trust_bundle":                  "dpsd does not store a trust bundle; state.json contains the response of the service",
	"prefer_module_identity_cache":      "it is for the modules of IoT Edge",
	"imported_master_encryption_key":    "it is for the modules of IoT Edge",
	"additional_info":                   "it is for the modules of IoT Edge",
	"iotedge_max_requests":              "it configures the sockets of the aziot services",
	"aziot_max_requests":                "it configures the sockets of the aziot services",
	"trust_bundle_cert":                 "it is for the modules of IoT Edge; transport.ca_file adds roots for DPS",
	"allow_elevated_docker_permissions": "it is for the modules of IoT Edge",
	"agent":                             "it is for the modules of IoT Edge",
	"connect":                           "it is for the modules of IoT Edge",
	"listen":                            "it is for the modules of IoT Edge",
	"watchdog":                          "it is for the modules of IoT Edge",
	"edge_ca":                           "it is for the modules of IoT Edge",
	"moby_runtime":                      "it is for the modules of IoT Edge",
	"image_garbage_collection":          "it is for the modules of IoT Edge",
	"cert_issuance":                     "dpsd does not issue certificates; DPS can issue the one for the hub, see [certificate] in dpsd.toml; have another program renew those of [[credential]] in /etc/dpsd/keys, where dpsd rereads \"file:\" references",
	"preloaded_certs":                   "dpsd does not provide certificates to other programs",
	"preloaded_keys":                    "dpsd does not provide keys to other programs",
	"aziot_keys":                        "dpsd does not load PKCS#11 libraries; another process holds such keys, see docs/signer.md",
	"tpm":                               "dpsd does not use the TPM attestation of DPS; docs/hardware-keys.md describes keys in a TPM",
	"localid":                           "dpsd does not issue certificates for local identities",
	"principal":                         "a service gets a socket and a module identity of its own with [[consumer]], see docs/migration.md",
	"endpoints":                         "it configures the sockets of the aziot services",
}

// Import converts the config.toml of Azure IoT Edge or the Azure IoT Identity Service.
// name is the file's name in messages and commands. A proxy may be set in drop-ins of
// aziot-identityd and aziot-edged, which are in the order in which systemd reads them.
//
// The error is document.Errors if the file is invalid, lacks a key that those services also
// require, or is another file of theirs. Any other error wraps an error of a reader.
func Import(name string, r io.Reader, dropIns ...DropIn) (Result, error) {
	data, err := document.Read(name, r)
	if err != nil {
		return Result{}, err
	}
	read := make([]dropIn, len(dropIns))
	for i, d := range dropIns {
		if read[i], err = readDropIn(d); err != nil {
			return Result{}, err
		}
	}
	if matches(unitLine, data) {
		return Result{}, document.Errors{dropInAlone(name, read)}
	}
	doc, problem := document.Parse(name, data, nil)
	if problem := anotherFile(doc, problem); problem != nil {
		problem.File = name
		return Result{}, document.Errors{problem}
	}
	a := importer{
		Checker: document.NewChecker(doc),
		set:     map[string]any{},
		stray:   map[document.Path]any{},
	}
	if problem := a.dropIns(read); problem != nil {
		return Result{}, document.Errors{problem}
	}
	a.whole()
	if err := a.Err(); err != nil {
		return Result{}, err
	}
	if a.lost {
		a.sort()
		a.notes = slices.DeleteFunc(a.notes, func(n *Note) bool { return strings.HasPrefix(n.Text, todo) })
		return Result{Notes: a.notes}, nil
	}
	a.takeProxy()
	a.sort()
	text := a.result()
	if _, err := config.Parse("dpsd.toml", strings.NewReader(text)); err != nil {
		return Result{}, fmt.Errorf("%s would become an invalid configuration: %w", name, err)
	}
	return Result{TOML: text, Notes: a.notes}, nil
}

// sort sorts the notes in the order of the files; the notes of drop-ins come last.
func (a *importer) sort() {
	rank := map[string]int{a.Name: -1}
	slices.SortStableFunc(a.notes, func(x, y *Note) int {
		return cmp.Or(rank[x.File]-rank[y.File], cmp.Compare(x.File, y.File), x.Line-y.Line)
	})
}
