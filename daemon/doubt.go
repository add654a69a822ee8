package daemon

import (
	"fmt"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/event"
)

// Doubt says what in the settings is probably a mistake although it may be right, and
// what to do about it; "" for nothing.
//
// Azure's ID scopes begin with "0ne", and with "0cn" in China. Nothing documents it, and
// a simulator has its own.
func (s *Settings) Doubt() (what, advice string) {
	begin := "0ne"
	if s.Dialer != nil && strings.HasSuffix(strings.ToLower(s.Dialer.Host), ".cn") {
		begin = "0cn"
	}
	if strings.HasPrefix(s.IDScope, begin) {
		return "", ""
	}
	scope := s.IDScope
	if len(scope) > 20 {
		scope = scope[:20] + "…" // something else may have been pasted here
	}
	return fmt.Sprintf("id_scope %s does not begin with %q; Azure's ID scopes do", strconv.Quote(scope), begin),
		"Copy the ID scope from the overview page of the provisioning service; it is not the name of the service."
}

// doubt logs that the settings are doubtful.
func (s *supervisor) doubt() {
	if what, advice := s.settings.Doubt(); what != "" {
		s.tell(event.ConfigurationDoubtful, zap.String("doubt", what), zap.String("advice", advice))
	}
}
