package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"slices"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
)

// This file contains the rows of the table about the network path to the service.

// issuedByDigiCert gives the service another name, with a certificate that leads to a root of
// that name. The gateway does not trust this root.
func issuedByDigiCert(g *gateway, host string) {
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "DigiCert Global Root CA", Organization: []string{"DigiCert Inc"}}}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotBefore: g.start.AddDate(-1, 0, 0), NotAfter: g.start.AddDate(1, 0, 0)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		g.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), key)
	if err != nil {
		g.t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MaxVersion: tls.VersionTLS12}
	g.Settings.Dialer.Host = host
	g.Settings.Dialer.DialContext = func(context.Context, string, string) (net.Conn, error) {
		g.mu.Lock()
		g.dials++
		g.mu.Unlock()
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			_ = tls.Server(theirs, config).Handshake()
		}()
		return newWire(ours), nil
	}
}

// proxies are the answers that a proxy can give.
func proxies() (rows []faultRow) {
	type proxy struct {
		address, answer string
		code            fault.Code
	}
	all := map[string]proxy{
		"forbids it (403)":                        {"http://proxy.test:3128", "HTTP/1.1 403 Filtered\r\n\r\n", fault.ProxyRefused},
		"hangs up":                                {"http://proxy.test:3128", "", fault.ProxyRefused},
		"does not get through (502)":              {"http://proxy.test:3128", "HTTP/1.1 502 Bad Gateway\r\n\r\n", fault.ProxyUpstream},
		"does not get through (503)":              {"http://proxy.test:3128", "HTTP/1.1 503 Service Unavailable\r\n\r\n", fault.ProxyUpstream},
		"does not get through (504)":              {"http://proxy.test:3128", "HTTP/1.1 504 Gateway Timeout\r\n\r\n", fault.ProxyUpstream},
		"expects TLS, and answers an alert":       {"http://proxy.test:3128", "\x15\x03\x01\x00\x02\x02\x28", fault.ProxyScheme},
		"expects TLS, and says so (400)":          {"http://proxy.test:3128", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<title>400 The plain HTTP request was sent to HTTPS port</title>", fault.ProxyScheme},
		"does not understand CONNECT (400)":       {"http://proxy.test:3128", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<title>400 Bad Request</title>", fault.ProxyRefused},
		"of an https:// address knows no TLS":     {"https://proxy.test:3129", "plain", fault.ProxyScheme},
		"of an https:// address waits for a line": {"https://proxy.test:3129", "line", fault.ProxyScheme},
	}
	for first, header := range map[string]string{"407 No": "Proxy-Authenticate", "401 Unauthorized": "WWW-Authenticate"} {
		for name, offer := range map[string]struct {
			challenges []string
			code       fault.Code
		}{
			"wants a password":                            {[]string{"Basic realm=\"a, b\""}, fault.ProxyAuth},
			"wants a password, and does not say how":      {nil, fault.ProxyAuth},
			"has Basic last in a list":                    {[]string{"Negotiate, NTLM, basic realm=\"a, b\""}, fault.ProxyAuth},
			"has Basic in a separate header":              {[]string{"Negotiate", "NTLM", "BASIC realm=\"x\""}, fault.ProxyAuth},
			"wants NTLM":                                  {[]string{"NTLM"}, fault.ProxyAuthUnsupported},
			"wants Negotiate or NTLM, in a list":          {[]string{"negotiate, ntlm"}, fault.ProxyAuthUnsupported},
			"wants Negotiate or NTLM, in two headers":     {[]string{"Negotiate", "NTLM"}, fault.ProxyAuthUnsupported},
			"wants Digest, for a realm that is \"Basic\"": {[]string{"Digest realm=\"x, Basic\", nonce=\"1\""}, fault.ProxyAuthUnsupported},
		} {
			answer := "HTTP/1.1 " + first + "\r\n"
			for _, challenge := range offer.challenges {
				answer += header + ": " + challenge + "\r\n"
			}
			all[name+" ("+first[:3]+")"] = proxy{"http://proxy.test:3128", answer + "\r\n", offer.code}
		}
	}
	for name, what := range all {
		play := answering(what.answer)
		if what.answer == "plain" {
			play = func(c net.Conn) {
				defer c.Close()
				if _, err := c.Read(make([]byte, 64)); err == nil {
					_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
				}
			}
		}
		if what.answer == "line" {
			play = func(c net.Conn) {
				defer c.Close()
				for line := make([]byte, 512); ; {
					if n, err := c.Read(line); err != nil || string(line[:n]) == "\r\n\r\n" {
						_, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\n")
						return
					}
				}
			}
		}
		rows = append(rows, faultRow{name: "a proxy " + name, on: "mqtt", code: what.code, lasts: true, set: func(g *gateway) {
			proxied(what.address, play).set(g)
		}})
	}
	return rows
}

// resumptions are rows about a server that fails on resumed sessions. The next connection of
// the same attempt avoids the failure.
func resumptions() (rows []faultRow) {
	for name, rule := range map[string]simulator.Rule{
		"the upgrade is reset":  {On: simulator.OnUpgrade, Reset: true},
		"connect closes":        {On: simulator.OnConnect, Close: true},
		"connect resets":        {On: simulator.OnConnect, Reset: true},
		"connect is silent":     {On: simulator.OnConnect, Silent: true},
		"connect sends garbage": {On: simulator.OnConnect, Garbage: "HTTP/1.1 400 Bad Request\r\n\r\n"},
		"subscribe resets":      {On: simulator.OnSubscribe, Reset: true},
	} {
		row := faultRow{name: "on a resumed session " + name, calm: true, rules: []simulator.Rule{rule}}
		if rule.On == simulator.OnUpgrade {
			row.on = "websocket"
		}
		rows = append(rows, row)
	}
	rows = append(rows,
		faultRow{name: "on a resumed session the certificate is gone: CONNACK 5", with: "certificate", calm: true, rules: []simulator.Rule{{On: simulator.OnConnect, Connack: code(5)}}},
		faultRow{name: "on a resumed session the certificate is gone: 401", with: "certificate", calm: true, rules: []simulator.Rule{{On: simulator.OnRegister, Status: 401, RetryAfter: "none"}}},
		// The next connection of the same attempt would also fail.
		faultRow{name: "on a resumed session CONNACK 3, once", code: fault.ConnackUnavailable, rules: []simulator.Rule{{On: simulator.OnConnect, Connack: code(3), Times: 1}}},
		faultRow{name: "on a resumed session the key is refused: CONNACK 5, once", code: fault.ConnackRefused, rules: []simulator.Rule{{On: simulator.OnConnect, Connack: code(5), Times: 1}}},
		faultRow{name: "on a resumed session the key is refused: 401, once", code: fault.Unauthorized, rules: []simulator.Rule{{On: simulator.OnRegister, Status: 401, RetryAfter: "none", Times: 1}}},
	)
	// These always fail on a resumed session. They cost one fault, and the next attempt
	// makes a full handshake.
	always := func(name string, c fault.Code, rule simulator.Rule) {
		rows = append(rows, faultRow{name: "on a resumed session " + name + ", always", code: c, costs: 1, rules: []simulator.Rule{rule}})
	}
	always("CONNACK 3", fault.ConnackUnavailable, simulator.Rule{On: simulator.OnConnect, Connack: code(3)})
	always("SUBACK 128", fault.NotDPS, simulator.Rule{On: simulator.OnSubscribe, Suback: code(128)})
	for _, stage := range []simulator.Stage{simulator.OnRegister, simulator.OnPoll} {
		on := string(stage) + " "
		always(on+"closes", fault.ConnectionLost, simulator.Rule{On: stage, Close: true})
		always(on+"resets", fault.ConnectionLost, simulator.Rule{On: stage, Reset: true})
		always(on+"sends garbage", fault.ProtocolViolation, simulator.Rule{On: stage, Garbage: "\xff\x00SSH-2.0-nobody\r\n"})
		always(on+"is silent", fault.NoReply, simulator.Rule{On: stage, Silent: true})
		always(on+"is answered 500", fault.ServiceError, simulator.Rule{On: stage, Status: 500, RetryAfter: "none"})
		always(on+"is answered with no JSON", fault.MalformedReply, simulator.Rule{On: stage, Body: text("<html>")})
	}
	var versions []faultRow
	for _, version := range []string{"1.2", "1.3"} {
		for _, row := range rows {
			row.name, row.tickets = row.name+", TLS "+version, version
			row.rules = slices.Clone(row.rules)
			row.rules[0].Resumed = true
			versions = append(versions, row)
		}
	}
	return versions
}
