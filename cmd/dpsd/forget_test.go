package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/store"
)

func TestForgetListsTheModulesThatStayAtTheHub(t *testing.T) {
	var b bytes.Buffer
	f := forgetter{out: &b, cfg: &config.Config{}, file: "dpsd.toml"}
	f.left(store.Forgotten{Modules: []store.ModuleIdentity{{AssignedHub: "hub.azure-devices.net", DeviceID: "press-7", ModuleID: "meter"}}})
	want := "  the module meter of press-7 at hub.azure-devices.net: stays at the hub until you delete it there, "
	if !strings.Contains(b.String(), want) {
		t.Errorf("the output does not contain %q:\n%s", want, b.String())
	}
}
