package packaging

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// If systemd skipped only some of the units, the target would be reached without dpsd, or a socket
// would try to start dpsd and fail.
func TestTheUnitsHaveTheSameConditionOnTheConfiguration(t *testing.T) {
	conditions := map[string][]string{}
	for _, name := range []string{"dpsd.service", "dpsd-provisioned.target", "dpsd-hub@.socket"} {
		text, err := os.ReadFile(filepath.Join("systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		condition := regexp.MustCompile(`(?m)^Condition.*$`).FindString(string(text))
		conditions[condition] = append(conditions[condition], name)
	}
	if len(conditions) != 1 || conditions[""] != nil {
		t.Errorf("the units have different conditions: %q", conditions)
	}
}
