package daemon

import (
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
)

// This file contains the rows of the table about the certificate of the gateway.

// alertsAboutCertificates are the alerts with which a server refuses a certificate. Before the
// server is verified and has requested a certificate, anyone on the network path can send one,
// so it refuses nothing.
func alertsAboutCertificates() (rows []faultRow) {
	for alert, says := range map[string]string{
		"bad_certificate": "bad certificate", "unknown_ca": "unknown certificate authority",
		"access_denied": "access denied", "certificate_required": "certificate required",
	} {
		for _, version := range []string{"1.2", "1.3"} {
			rule := simulator.Rule{On: simulator.OnTLS, TLSMax: version, Alert: alert}
			early := onceAndAlways("the alert "+alert+" before any certificate, TLS "+version, fault.TLSFailed, rule)
			rule.AlertAt = "certificate"
			late := "the alert " + alert + " of a verified server that has requested a certificate, TLS " + version
			asked := slices.Concat(early, onceAndAlways(late, fault.TLSFailed, rule))
			shown := slices.Concat(early, onceAndAlways(late, fault.CertificateRefused, rule))
			if version == "1.3" && alert != "bad_certificate" { // the simulator sends no other alert in this case
				asked, shown = early, early
			}
			for with, more := range map[string][]faultRow{"key": asked, "certificate": shown} {
				for _, row := range more {
					row.with, row.says = with, "remote error: tls: "+says
					if with == "key" && strings.HasPrefix(row.name, late) {
						row.advises = "DPS accepts a symmetric key without a certificate"
					}
					rows = append(rows, row)
				}
			}
		}
	}
	return rows
}

// chains are rows about the gateway's certificate, which the service verifies.
func chains() []faultRow {
	issued := func(life time.Duration) func(*gateway) {
		return func(g *gateway) { g.chained(time.Now().Add(life)) }
	}
	const says = "certificate 2 of 2 in the chain has expired (not after 2000-01-01T00:00:"
	return []faultRow{
		{name: "an intermediate has expired", with: "certificate", code: fault.CertificateExpired, says: says, lasts: true, set: issued(-time.Hour)},
		{name: "an intermediate has expired, and the chain is renewed", with: "certificate", code: fault.CertificateExpired, says: says, set: issued(-time.Hour),
			correct: func(g *gateway) { g.enroll(time.Now().Add(time.Hour)) }},
		{name: "an intermediate is about to expire", with: "certificate", calm: true, set: issued(time.Hour)},
	}
}
