package main

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestTheSchemaDescribesEveryMemberOfTheTPMReports(t *testing.T) {
	var schema struct {
		Defs map[string]struct {
			Properties map[string]any
			Required   []string
		} `json:"$defs"`
	}
	text, err := os.ReadFile("../../docs/tpm.schema.json")
	if err == nil {
		err = json.Unmarshal(text, &schema)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]any{"status": tpmStatus{}, "test": tpmTestReport{}, "list": tpmListReport{}, "key": tpmFile{}, "object": tpmObject{}} {
		described := schema.Defs[name]
		members := 0
		for _, f := range reflect.VisibleFields(reflect.TypeOf(value)) {
			member, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if member == "" {
				continue
			}
			members++
			if described.Properties[member] == nil {
				t.Errorf("%s: %s is not described", name, member)
			}
			if required := slices.Contains(described.Required, member); required == (options == "omitempty") {
				t.Errorf("%s: %s is required: %t", name, member, required)
			}
		}
		if members != len(described.Properties) || members == 0 {
			t.Errorf("%s has %d members, and %d are described", name, members, len(described.Properties))
		}
	}
}
