package aziot

import (
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/config/document"
)

// edgeKeys are keys of the file that only IoT Edge reads.
var edgeKeys = []string{
	"auto_reprovisioning_mode", "trust_bundle_cert", "allow_elevated_docker_permissions", "parent_hostname",
	"imported_master_encryption_key", "additional_info", "iotedge_max_requests",
	"agent", "connect", "listen", "watchdog", "edge_ca", "moby_runtime", "image_garbage_collection",
}

// edgeComments matches comments of IoT Edge's template, of which most files are copies, that
// are not in the template of the Identity Service.
const edgeComments = `(?m)^[# \t]*(auto_reprovisioning_mode[ \t]*=|trust_bundle_cert[ \t]*=|\[(agent|edge_ca|moby_runtime|watchdog)\])`

// isEdge reports whether the file belongs to IoT Edge rather than to the Identity Service
// alone.
func (a *importer) isEdge() bool {
	for at := range a.stray {
		if at.Name() == "auto_reprovisioning_mode" {
			return true
		}
	}
	return a.edge || matches(edgeComments, a.From(1)) || slices.ContainsFunc(edgeKeys, func(key string) bool { return a.Values[key] != nil })
}

// modes maps IoT Edge's auto_reprovisioning_mode to provisioning.on_boot.
var modes = map[string]string{"dynamic": "verify", "alwaysonstartup": "always", "onerroronly": "if-needed"}

// bootPolicy converts the settings that control whether aziot contacts the service at a
// start. A setting that is not in the file has the default of aziot, not of dpsd.
func (a *importer) bootPolicy() {
	const mode, always, dynamic = "auto_reprovisioning_mode", "always_reprovision_on_startup", "dynamic_reprovisioning"
	root := document.Path("")
	provisioning, _ := a.Values["provisioning"].(map[string]any)
	earlier := root.Key("provisioning").Key(always)
	earlierValue := provisioning[always]
	if earlierValue == nil {
		earlier, earlierValue = root.Key(always), a.Values[always]
	}
	moving := root.Key("provisioning").Key(dynamic)
	moves, _ := provisioning[dynamic].(bool)
	_, earlierIsSaid := earlierValue.(bool)
	if earlierValue != nil && !earlierIsSaid {
		a.Report(earlier, document.Error{Problem: "must be a boolean, not " + document.TypeOf(earlierValue), Remedy: "write true or false"})
	}

	instead := "" // reason why the overridden settings are left out
	switch value := a.Values[mode]; {
	case value != nil:
		a.autoMode(root.Key(mode), value)
		instead = mode + " takes precedence"
	case moves:
		// It had precedence over the other setting in the versions that had both.
		a.become(a.origin(moving), "provisioning.on_boot", "verify")
		instead = dynamic + " takes precedence"
	case earlierIsSaid:
		policy := map[bool]string{true: "always", false: "if-needed"}[earlierValue == true]
		a.become(a.origin(earlier), "provisioning.on_boot", policy)
	case a.isEdge():
		a.set["provisioning.on_boot"] = "verify"
		a.note(root.Key(mode), "", `is missing, which means "Dynamic" for IoT Edge; it is now provisioning.on_boot = "verify"`)
	default:
		a.set["provisioning.on_boot"] = "if-needed"
		a.note(root.Key(mode), "", `is missing, and no setting here belongs to IoT Edge; the IoT Identity Service contacts DPS only if it has no backup, so it is now provisioning.on_boot = "if-needed" ("verify" for IoT Edge)`)
	}
	if earlierIsSaid && instead != "" {
		a.leaveOut(earlier, instead)
	}
	if provisioning[dynamic] != nil && (a.Values[mode] != nil || !moves) {
		a.leaveOut(moving, instead)
	}
}

// autoMode checks IoT Edge's auto_reprovisioning_mode.
func (a *importer) autoMode(at document.Path, value any) {
	s, ok := a.string(at, value, "")
	if !ok {
		return
	}
	policy := modes[strings.ToLower(s)]
	if policy == "" {
		a.Report(at, document.Error{Problem: document.Quote(s) + " is unknown", Remedy: `the modes are "Dynamic", "AlwaysOnStartup" and "OnErrorOnly"`})
		return
	}
	a.become(a.origin(at), "provisioning.on_boot", policy)
}
