package main

import (
	"crypto/sha256"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/sas"
)

// content is the data that any client must send for a registration.
type content struct {
	identity  dps.Identity
	port      string // of the service, in the Host of WebSocket
	chain     []int  // sizes of the device's certificates in DER; none with a key
	operation string // the operation ID that the service gave
}

// smallest returns the minimum number of bytes that a registration with one connection sends,
// as payload of TCP. The model:
//
// The content is given: the names of service and device, the program's name in the user
// name, a SAS token of mean length, or a certificate. Everything else is as small as MQTT
// 3.1.1, RFC 6455, RFC 5246 and RFC 8446 permit for a client with the capabilities of dpsd:
// it supports servers of either version with an ECDSA or RSA certificate from Azure's
// authorities, which sign with SHA-384, without knowing anything else in advance, resumes
// sessions, and works through middleboxes (RFC 8446 appendix D.4). There is one cipher suite
// for each kind, AES-GCM; a key share of one group, X25519; all messages of a flight in one
// record; requests at QoS 0; and the closing messages of MQTT and TLS.
func smallest(v variant, c content) int {
	tls13 := v.tls == "1.3"
	total := clientHello() + clientFlight(tls13, c.chain)
	overhead := 5 + 8 + 16 // header, explicit nonce, tag
	if tls13 {
		overhead = 5 + 1 + 16 // header, content type, tag
	}
	send := func(size int) { total += overhead + size }
	if v.protocol == "websocket" {
		send(len("GET /$iothub/websocket HTTP/1.1\r\nHost: localhost:" + c.port + "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
			"Sec-WebSocket-Key: 0123456789012345678901==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"))
	}
	for _, packet := range packets(v, c) {
		if v.protocol == "websocket" { // RFC 6455 5.2: header, length, mask
			packet += 2 + 4
			if packet-6 > 125 {
				packet += 2
			}
		}
		send(packet)
	}
	send(2) // close_notify
	return total
}

// clientHello returns the size of its record.
func clientHello() int {
	const (
		header     = 5 + 4 + 2 + 32     // record, handshake, version, random
		session    = 1 + 32             // of the compatibility mode
		suites     = 2 + 2*(1+2) + 2    // one of TLS 1.3, ECDSA and RSA of 1.2, RFC 5746 3.3
		methods    = 2                  // of compression
		groups     = 4 + 2 + 2*3        // X25519, P-256 (RFC 8446 9.1), P-384 for Azure's ECC authorities (RFC 8422 5.1)
		signatures = 4 + 2 + 2*5        // those of RFC 8446 9.1: ECDSA, RSA-PSS, PKCS #1; and with SHA-384 ECDSA, PKCS #1
		ticket     = 4                  // RFC 5077
		master     = 4                  // RFC 7627, which resumption needs
		versions   = 4 + 1 + 2*2        // TLS 1.3 and 1.2
		modes      = 4 + 1 + 1          // of resumption in TLS 1.3
		share      = 4 + 2 + 2 + 2 + 32 // X25519
		extensions = groups + signatures + ticket + master + versions + modes + share
	)
	name := 4 + 2 + 1 + 2 + len("localhost")
	return header + session + suites + methods + 2 + name + extensions
}

// clientFlight returns the size of the end of the handshake, including the answer to the
// server's request for a certificate.
func clientFlight(tls13 bool, chain []int) int {
	const changeCipherSpec = 5 + 1
	verify := 0
	if len(chain) > 0 {
		verify = 4 + 2 + 2 + 70 // a signature of ECDSA P-256 in DER
	}
	if tls13 {
		certificate := 4 + 1 + 3
		for _, size := range chain {
			certificate += 3 + size + 2
		}
		return changeCipherSpec + 5 + 1 + 16 + certificate + verify + 4 + 32 // Finished
	}
	certificate := 4 + 3
	for _, size := range chain {
		certificate += 3 + size
	}
	const keyExchange = 4 + 1 + 32
	return 5 + certificate + keyExchange + verify + changeCipherSpec + 5 + 8 + 16 + 4 + 12
}

// packets returns the sizes of the MQTT packets that are sent.
func packets(v variant, c content) []int {
	text := func(s string) int { return 2 + len(s) }
	packet := func(rest int) int {
		if rest > 127 { // [MQTT 2.2.3]
			return 3 + rest
		}
		return 2 + rest
	}
	connect := text("MQTT") + 1 + 1 + 2 + text(c.identity.ClientID()) + text(c.identity.UserName())
	if len(c.chain) == 0 {
		token := sas.Token(c.identity.Resource(), make([]byte, sha256.Size), time.Now(), "registration")
		before, rest, _ := strings.Cut(token, "&sig=")
		_, after, _ := strings.Cut(rest, "&")
		// On average, 1.3 of 43 base64 characters are + or / (2 of 64). An escape adds two
		// characters.
		const escapes = 3
		connect += text(before+"&sig="+strings.Repeat("x", 43)+"%3D&"+after) + escapes
	}
	all := []int{
		packet(connect),
		packet(2 + text(dps.ResponseFilter) + 1),
		packet(text("$dps/registrations/PUT/iotdps-register/?$rid=1") + len(`{"registrationId":"`+c.identity.RegistrationID+`"}`)),
	}
	for range v.polls {
		all = append(all, packet(text("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId="+c.operation)))
	}
	return append(all, 2)
}
