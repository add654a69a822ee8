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

// Result is what Import makes of a configuration.
type Result struct {
	// TOML is a dpsd.toml, with the notes as comments; "" when the gateway's identity
	// cannot be carried over, and the notes say why.
	TOML string
	// Notes tell what is left out and what is left to do, in the order of the file.
	Notes []*Note
}

// Note is something about a key that a person should know. It repeats no secret.
type Note struct {
	// File, Line and Key say where; the line is 0 when it cannot be told.
	File string
	Line int
	Key  string
	// Text says what, on one line.
	Text string
	// Command is what does it in a shell, run by root; "" for none.
	Command string
}

// String is the note without its command: "config.toml:3: hostname: left out: …".
func (n *Note) String() string {
	where := n.File
	if n.Line > 0 {
		where += fmt.Sprintf(":%d", n.Line)
	}
	return where + ": " + n.Key + ": " + n.Text
}

// The credentials that an import refers to; the unit loads them by these names.
const (
	importedKey         = "dps-primary-key"
	importedCertificate = "dps-certificate"
	importedPrivateKey  = "dps-private-key"
	importedPassword    = "proxy-password"
)

// leftOut says why a key of an aziot config.toml has no counterpart. The keys are
// those of the templates that aziot-identity-service and aziot-edge install.
var leftOut = map[string]string{
	"hostname":                          "dpsd leaves the host name alone; %H in registration_id stands for it",
	"local_gateway_hostname":            "dpsd reaches the service directly or through a proxy, not through a parent gateway",
	"parent_hostname":                   "dpsd reaches the service directly or through a proxy, not through a parent gateway",
	"cloud_timeout_sec":                 "dpsd has time-outs of its own, transport.connect_timeout and transport.response_timeout",
	"cloud_retries":                     "dpsd does not give up; [retry] has the delays",
	"dps_trust_bundle":                  "dpsd keeps no trust bundle; what the service returned is in state.json",
	"prefer_module_identity_cache":      "it is for the modules of IoT Edge",
	"imported_master_encryption_key":    "it is for the modules of IoT Edge",
	"additional_info":                   "it is for the modules of IoT Edge",
	"iotedge_max_requests":              "it is about the sockets of the aziot services",
	"aziot_max_requests":                "it is about the sockets of the aziot services",
	"trust_bundle_cert":                 "it is for the modules of IoT Edge; transport.ca_file adds to what the service may show",
	"allow_elevated_docker_permissions": "it is for the modules of IoT Edge",
	"agent":                             "it is for the modules of IoT Edge",
	"connect":                           "it is for the modules of IoT Edge",
	"listen":                            "it is for the modules of IoT Edge",
	"watchdog":                          "it is for the modules of IoT Edge",
	"edge_ca":                           "it is for the modules of IoT Edge",
	"moby_runtime":                      "it is for the modules of IoT Edge",
	"image_garbage_collection":          "it is for the modules of IoT Edge",
	"cert_issuance":                     "dpsd issues no certificates; have another program renew them in /etc/dpsd/keys, where it reads \"file:\" references again",
	"preloaded_certs":                   "dpsd hands no certificates to others",
	"preloaded_keys":                    "dpsd hands no keys to others",
	"aziot_keys":                        "dpsd uses no PKCS#11 token",
	"tpm":                               "dpsd uses no TPM",
	"localid":                           "dpsd makes no identities of modules",
	"principal":                         "dpsd makes no identities of modules",
	"endpoints":                         "it is about the sockets of the aziot services",
}

// Import converts the config.toml of Azure IoT Edge or the Azure IoT Identity Service.
// name stands for the file in messages and commands. A proxy may be in drop-ins of
// aziot-identityd and aziot-edged, which are in the order in which systemd reads them.
//
// The error is Errors when the file is not valid or lacks what those services demand
// too, or is another file of theirs. Any other error is one of a reader, wrapped.
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

// sort puts the notes in the order of the files, those of the drop-ins last.
func (a *importer) sort() {
	rank := map[string]int{a.Name: -1}
	slices.SortStableFunc(a.notes, func(x, y *Note) int {
		return cmp.Or(rank[x.File]-rank[y.File], cmp.Compare(x.File, y.File), x.Line-y.Line)
	})
}
