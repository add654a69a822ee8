package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
)

// probeHub is a minimal program that uses only a hub: it connects with the connection string
// that exec has set, sends one message, and prints the answers.
func probeHub() {
	if err := doProbeHub(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func doProbeHub(out io.Writer) error {
	settings := map[string]string{}
	for pair := range strings.SplitSeq(os.Getenv("IOTHUB_DEVICE_CONNECTION_STRING"), ";") {
		name, value, _ := strings.Cut(pair, "=")
		settings[name] = value
	}
	hub, id := settings["HostName"], settings["DeviceId"]
	key, err := base64.StdEncoding.DecodeString(settings["SharedAccessKey"])
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(os.Getenv("DPS_CA_FILE"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, err := tls.Dial("tcp", net.JoinHostPort(hub, os.Getenv("DPS_MQTT_PORT")), &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
	if err != nil {
		return err
	}
	defer conn.Close()

	const expiry = "4102444800" // 2100
	resource := url.QueryEscape(hub + "/devices/" + id)
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%s", resource, expiry)
	token := "SharedAccessSignature sr=" + resource + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))) + "&se=" + expiry
	text := func(s string) string { return string(binary.BigEndian.AppendUint16(nil, uint16(len(s)))) + s }
	packet := func(first byte, body string) string {
		return string(binary.AppendUvarint([]byte{first}, uint64(len(body)))) + body
	}
	connect := packet(0x10, text("MQTT")+"\x04\xc2\x00\x00"+text(id)+text(hub+"/"+id+"/?api-version=2021-04-12")+text(token))
	publish := packet(0x32, text("devices/"+id+"/messages/events/")+"\x00\x07"+`{"temperature":21}`)
	if _, err := io.WriteString(conn, connect+publish); err != nil {
		return err
	}
	answers := make([]byte, 8) // CONNACK and PUBACK
	n, err := io.ReadFull(conn, answers)
	fmt.Fprintf(out, "%s: %s\n", id, hex.EncodeToString(answers[:n]))
	return err
}
