package daemon

import (
	"fmt"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/event"
)

// Doubt is a setting that is probably a mistake, although it may be right.
type Doubt struct{ What, Advice string }

// Doubts returns the doubtful settings.
func (s *Settings) Doubts() (doubts []Doubt) {
	host := ""
	if s.Dialer != nil {
		host = s.Dialer.Host
	}
	for _, doubt := range []Doubt{doubtfulScope(s.IDScope, host), doubtfulVersion(s.APIVersion, host, s.Certificate != nil), doubtfulConsumers(s.Consumers)} {
		if doubt.What != "" {
			doubts = append(doubts, doubt)
		}
	}
	return doubts
}

// doubtfulScope knows that Azure's ID scopes begin with "0ne", and with "0cn" in China.
// Nothing documents it, and a simulator has its own.
func doubtfulScope(scope, host string) Doubt {
	begin := "0ne"
	if strings.HasSuffix(strings.ToLower(host), ".cn") {
		begin = "0cn"
	}
	if strings.HasPrefix(scope, begin) {
		return Doubt{}
	}
	if len(scope) > 20 {
		scope = scope[:20] + "…" // something else may have been pasted here
	}
	return Doubt{fmt.Sprintf("id_scope %s does not begin with %q; Azure's ID scopes do", strconv.Quote(scope), begin),
		"Copy the ID scope from the overview page of your DPS instance; it is not the name of the instance."}
}

// doubtfulVersion knows that the sovereign clouds have refused API versions which the
// public cloud supported: 2021-06-01 in Azure Government, 2019-04-15 in China.
func doubtfulVersion(version, host string, issuing bool) Doubt {
	cloud, _ := classify.CloudOf(host)
	if !cloud.Sovereign || version == "" || version == dps.DefaultAPIVersion {
		return Doubt{}
	}
	remove := "api_version"
	if issuing {
		remove = "api_version and the table [certificate], which requires a newer version"
	}
	return Doubt{fmt.Sprintf("%s may not support api_version %q: it has refused versions that the public cloud supports", cloud.Name, version),
		fmt.Sprintf("Remove %s, so that dpsd uses %s, unless %s refuses that one.", remove, dps.DefaultAPIVersion, cloud.Name)}
}

// doubtfulConsumers reports several consumers with the identity of the device: a hub keeps only
// the last connection of an identity.
func doubtfulConsumers(all []consumer.Consumer) Doubt {
	var names []string
	for _, c := range all {
		if c.Scope.Module == "" {
			names = append(names, c.Name)
		}
	}
	if len(names) < 2 {
		return Doubt{}
	}
	return Doubt{fmt.Sprintf("%d [[consumer]] tables use the identity of the device: %s; the hub disconnects one service when another connects", len(names), strings.Join(names, ", ")),
		`Write scope = "module:NAME" for all but one of them, unless they connect at different times or send their messages over HTTPS.`}
}

// logDoubts logs the doubtful settings.
func (s *supervisor) logDoubts() {
	for _, doubt := range s.settings.Doubts() {
		s.log(event.ConfigurationDoubtful, zap.String("doubt", doubt.What), zap.String("advice", doubt.Advice))
	}
}
