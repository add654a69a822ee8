package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// probeServed registers a device with the files of "credentials" at the addresses of
// "serve", and prints the result: probe-served DIR ID.
func probeServed() {
	reply, err := register(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(reply)
}

// awaitServed registers a device repeatedly until the reply contains a text:
// await-served DIR ID TEXT. The program may handle a signal with a delay.
func awaitServed(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: await-served DIR ID TEXT")
	}
	reply := ""
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var err error
		reply, err = register(ts.MkAbs(args[0]), args[1])
		ts.Check(err)
		if strings.HasSuffix(reply, args[2]) {
			return
		}
	}
	ts.Fatalf("%s still receives %s", args[1], reply)
}

// awaitText waits until a file contains a text: await-text FILE TEXT.
func awaitText(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await-text FILE TEXT")
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if text, _ := os.ReadFile(ts.MkAbs(args[0])); strings.Contains(string(text), args[1]) {
			return
		}
	}
	ts.Fatalf("%q does not come into %s:\n%s", args[1], args[0], ts.ReadFile(args[0]))
}

// register performs a minimal registration that polls without delay.
func register(dir, id string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "endpoint.json"))
	if err != nil {
		return "", err
	}
	var endpoint struct{ MQTT, IDScope, CAFile string }
	if err := json.Unmarshal(text, &endpoint); err != nil {
		return "", err
	}
	ca, err := os.ReadFile(endpoint.CAFile)
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	certificate, err := tls.LoadX509KeyPair(filepath.Join(dir, id+".pem"), filepath.Join(dir, id+"-key.pem"))
	if err != nil {
		return "", err
	}
	conn, err := tls.Dial("tcp", endpoint.MQTT, &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	field := func(s string) string { return string(binary.BigEndian.AppendUint16(nil, uint16(len(s)))) + s }
	exchange := func(first byte, body string) ([]byte, error) {
		if _, err := conn.Write(append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...)); err != nil {
			return nil, err
		}
		head, err := in.ReadByte()
		if err != nil {
			return nil, err
		}
		length, err := binary.ReadUvarint(in)
		if err != nil {
			return nil, err
		}
		reply := make([]byte, length)
		_, err = io.ReadFull(in, reply)
		return append([]byte{head, byte(length)}, reply...), err
	}
	connack, err := exchange(0x10, field("MQTT")+"\x04\x82\x00\x00"+field(id)+field(endpoint.IDScope+"/registrations/"+id+"/api-version=2019-03-31"))
	if err != nil || connack[3] != 0 {
		return fmt.Sprintf("%s: mqtt %x", id, connack), err
	}
	if _, err := exchange(0x82, "\x00\x01"+field("$dps/registrations/res/#")+"\x00"); err != nil {
		return "", err
	}
	topic := "$dps/registrations/PUT/iotdps-register/?$rid=1"
	for range 5 {
		reply, err := exchange(0x30, field(topic))
		if err != nil {
			return "", err
		}
		var body struct {
			OperationID, Status string
			RegistrationState   struct{ AssignedHub, Substatus string }
		}
		if err := json.Unmarshal(reply[bytes.IndexByte(reply, '{'):], &body); err != nil {
			return "", fmt.Errorf("%q: %w", reply, err)
		}
		if body.Status != "assigning" {
			return fmt.Sprintf("%s: mqtt %x %s %s %s", id, connack, body.Status, body.RegistrationState.AssignedHub, body.RegistrationState.Substatus), nil
		}
		topic = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1&operationId=" + body.OperationID
	}
	return "", errors.New("it does not come to its end")
}
