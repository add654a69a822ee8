package simulator_test

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// A device registers with a symmetric key. In a test, simulator.Start(t, simulator.Options{})
// replaces Listen and Close.
func Example() {
	polls := 1
	sim, err := simulator.Listen(simulator.Options{
		Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &polls, RetryAfter: "0"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer sim.Close()

	const id = "gateway-1"
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(sim.CA())
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(sim.MQTTPort))
	conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, ServerName: sim.Host, MinVersion: tls.VersionTLS12})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	in := bufio.NewReader(conn)

	// These functions encode an MQTT string and a packet, and read a packet.
	text := func(s string) string { return string(binary.BigEndian.AppendUint16(nil, uint16(len(s)))) + s }
	send := func(first byte, body string) {
		_, _ = conn.Write(append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...))
	}
	receive := func() string {
		_, _ = in.ReadByte()
		length, _ := binary.ReadUvarint(in)
		body := make([]byte, length)
		_, _ = io.ReadFull(in, body)
		return string(body)
	}

	// The SAS token is signed with the device's key.
	key, _ := base64.StdEncoding.DecodeString(sim.DeviceKey(id))
	resource := url.QueryEscape(sim.IDScope() + "/registrations/" + id)
	expiry := time.Now().Add(time.Hour).Unix()
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%d", resource, expiry)
	password := fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d&skn=registration",
		resource, url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), expiry)

	user := sim.IDScope() + "/registrations/" + id + "/api-version=2019-03-31"
	send(0x10, text("MQTT")+"\x04\xc2\x00\x00"+text(id)+text(user)+text(password))
	fmt.Printf("CONNACK % x\n", receive())
	send(0x82, "\x00\x01"+text("$dps/registrations/res/#")+"\x00")
	fmt.Printf("SUBACK % x\n", receive())

	send(0x30, text("$dps/registrations/PUT/iotdps-register/?$rid=1"))
	operation := regexp.MustCompile(`"operationId":"([^"]+)"`).FindStringSubmatch(receive())[1]
	send(0x30, text("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId="+operation))
	fmt.Println(regexp.MustCompile(`"assignedHub":"[^"]*","deviceId":"[^"]*"`).FindString(receive()))

	for _, d := range simulator.SummarizeDevices(sim.Log()) {
		fmt.Println(d.RegistrationID, "round trips:", d.RoundTrips, "violations:", d.Violations)
	}
	// Output:
	// CONNACK 00 00
	// SUBACK 00 01 00
	// "assignedHub":"dpsd-sim.azure-devices.net","deviceId":"gateway-1"
	// gateway-1 round trips: 4 violations: []
}
