package nearest

import (
	"strings"
	"testing"
)

func TestNameReturnsTheMostSimilarName(t *testing.T) {
	names := []string{"check", "config", "run", "status", "wait", "mqtt_port", "keep_alive", "id_scope"}
	for word, want := range map[string]string{
		"statsu":                       "status",
		"STATUS":                       "status",
		"stat":                         "status",
		"chekc":                        "check",
		"rnu":                          "run",
		"port_mqtt":                    "mqtt_port",
		"keep-alive":                   "keep_alive",
		"id_scop":                      "id_scope",
		"":                             "",
		"nonsense":                     "",
		strings.Repeat("status", 1000): "",
	} {
		if got := Name(word, names); got != want {
			t.Errorf("%.20q: %q, want %q", word, got, want)
		}
	}
}
