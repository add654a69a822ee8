package config

import (
	"regexp"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/config/document"
)

// modulePrefix begins a scope that is a module.
const modulePrefix = "module:"

// scopes is the remedy for a scope that does not exist.
const scopes = `write "device", "device/messages/events", or "module:NAME" with a module ID`

// The names of consumers are file names and the instance names of units, without characters
// that systemd escapes in them (systemd.unit(5)).
const (
	consumerName    = `^[A-Za-z0-9_-][A-Za-z0-9._-]*$`
	maxConsumerName = 64
)

// aziotListener is the name of the socket for programs of the Azure IoT Identity Service
// (package aisapi), which needs no [[consumer]].
const aziotListener = "aziot-identity"

func checkConsumerName(s string) *Error {
	if s == aziotListener {
		return &Error{Problem: document.Quote(s) + " is the name of the socket for programs of the Azure IoT Identity Service, which needs no [[consumer]]",
			Remedy: "choose another name, or remove the table; see docs/migration.md"}
	}
	if len(s) > maxConsumerName || !regexp.MustCompile(consumerName).MatchString(s) {
		return &Error{Problem: document.Quote(s) + " is not a valid name for a consumer",
			Remedy: `write at most 64 letters, digits, "-", "_" and ".", not beginning with "."`}
	}
	return nil
}

// moduleCharacters are the characters of a module ID (azure-docs, "Understand and use module
// twins in IoT Hub", module identity properties), except "+" and "#", which a topic name
// must not contain [MQTT-3.3.2-2]: the module could not send anything.
const moduleCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-:._%*?!(),=@$'"

// maxModuleID is the maximum length of a module ID.
const maxModuleID = 128

// parseScope returns the scope if it is valid.
func parseScope(s string) (string, *Error) {
	id, isModule := strings.CutPrefix(s, modulePrefix)
	switch {
	case s == "device", s == "device/messages/events":
		return s, nil
	case !isModule:
		return "", explained(s, &Error{Problem: document.Quote(s) + " is not a scope", Remedy: scopes})
	case strings.HasPrefix(id, "$"):
		return "", &Error{Problem: "IoT Hub reserves module IDs that begin with \"$\"", Remedy: `write another name after "module:"`}
	case id == "" || len(id) > maxModuleID || strings.Trim(id, moduleCharacters) != "":
		return "", explained(s, &Error{Problem: document.Quote(id) + " is not a valid module ID",
			Remedy: `write 1 to 128 letters, digits and "-:._%*?!(),=@$'" after "module:"`})
	}
	return s, nil
}

// checkLifetime requires whole seconds, because a token contains seconds.
func checkLifetime(d time.Duration) *Error {
	if d%time.Second != 0 {
		return &Error{Problem: "must be a whole number of seconds", Remedy: `such as "15m"`}
	}
	return nil
}

// consumers reads [[consumer]] and checks the rules that concern several of them.
func (c *checker) consumers(at document.Path, value any) []Consumer {
	elements := c.elements(at, "consumer", value)
	all := make([]Consumer, len(elements))
	names, modules := map[string]bool{}, map[string]string{}
	for i, e := range elements {
		if e.values == nil {
			continue
		}
		one := &all[i]
		c.consumer(e, one)
		if names[one.Name] && one.Name != "" {
			c.Report(e.at.Key("name"), Error{Problem: document.Quote(one.Name) + " is also the name of another [[consumer]]", Remedy: "give each a different name"})
		}
		names[one.Name] = true
		module := one.Module()
		if other := modules[module]; module != "" && other != "" {
			c.Report(e.at.Key("scope"), Error{Problem: "consumer " + document.Quote(other) + " uses the same module",
				Remedy: "give each a different module, because the hub disconnects one when the other connects"})
		}
		modules[module] = one.Name
	}
	return all
}

// consumer reads one consumer.
func (c *checker) consumer(e element, to *Consumer) {
	t := table{name: "consumer", keys: consumerKeys(to)}
	t.reset()
	c.table(e.at, e.values, t)
	missing := func(name, remedy string) {
		if e.values[name] == nil && !c.meant[e.at.Key(name)] {
			c.ReportMissing(e.at, name, remedy)
		}
	}
	missing("name", "it is the NAME of the unit dpsd-hub@NAME.socket")
	missing("scope", scopes)
	if to.Certificate && to.Scope != "" && to.Scope != "device" {
		c.Report(e.at.Key("certificate"), Error{Problem: "only a service with the scope \"device\" can use the certificate", Remedy: `write scope = "device", or remove certificate`})
	}
}
