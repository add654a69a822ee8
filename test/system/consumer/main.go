// Command consumer acts as a local service that uses the hub through its own socket.
//
//	consumer token NAME  gets a token, and prints the result
//	consumer tokens NAME does the same every three seconds
//	consumer send NAME   gets a token, uses it to send a message to the simulated hub, and prints the response
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// interval is the shortest that the limit of 30 requests a minute permits.
const interval = 3 * time.Second

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: consumer token|tokens|send NAME")
		os.Exit(2)
	}
	name := os.Args[2]
	s := service{local: &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		// Each request has its own connection, which may have to wait for dpsd.
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", "/run/dpsd/hub/"+name+".sock")
		},
	}}}
	action := s.try
	if os.Args[1] == "send" {
		action = s.send
	}
	said, err := action()
	for ; os.Args[1] == "tokens"; said, err = action() {
		fmt.Println(cmp.Or(said, fmt.Sprint(err)))
		time.Sleep(interval)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "consumer:", err)
		os.Exit(1)
	}
	fmt.Println(said)
}

type service struct{ local *http.Client }

// hub and token are the responses that the service uses.
type hub struct{ Host, DeviceID, RootsFile, Scope string }

type token struct {
	Token     string
	ExpiresIn int
}

// lifetime returns the lifetime that remains, in whole minutes: the seconds can differ by one.
func (t token) lifetime() string { return fmt.Sprintf("%d min", (t.ExpiresIn+30)/60) }

// notYet is a response that asks the service to repeat the request.
type notYet struct {
	Code    string
	RetryIn float64
}

func (n notYet) Error() string { return "not yet: " + n.Code }

// try gets a token.
func (s service) try() (string, error) {
	t, err := s.token()
	if err != nil {
		return "", err
	}
	return "token for " + t.lifetime(), nil
}

func (s service) token() (t token, err error) { return t, s.ask(http.MethodPost, "/v1/token", &t) }

// ask sends a request to dpsd.
func (s service) ask(method, path string, to any) error {
	request, err := http.NewRequest(method, "http://dpsd"+path, nil)
	if err != nil {
		return err
	}
	response, err := s.local.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	switch response.StatusCode {
	case http.StatusOK:
		return json.Unmarshal(body, to)
	case http.StatusServiceUnavailable:
		var n notYet
		if err := json.Unmarshal(body, &n); err != nil {
			return err
		}
		if n.Code == "" || n.RetryIn <= 0 || response.Header.Get("Retry-After") == "" {
			return fmt.Errorf("503 does not say why or until when: %q, %s", response.Header, body)
		}
		return n
	}
	return fmt.Errorf("%s: %s", response.Status, body)
}

// port is the HTTPS port of the simulated hub.
const port = "8443"

// send sends a message to the hub over HTTPS.
func (s service) send() (string, error) {
	var h hub
	if err := s.ask(http.MethodGet, "/v1/hub", &h); err != nil {
		return "", err
	}
	t, err := s.token()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(h.RootsFile)
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return "", errors.New(h.RootsFile + " contains no certificate")
	}
	address := url.URL{Scheme: "https", Host: net.JoinHostPort(h.Host, port), Path: "/devices/" + h.DeviceID + "/messages/events", RawQuery: "api-version=2020-03-13"}
	request, err := http.NewRequest(http.MethodPost, address.String(), strings.NewReader("hello"))
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", t.Token)
	remote := http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	response, err := remote.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	resource, _, _ := strings.Cut(strings.TrimPrefix(t.Token, "SharedAccessSignature sr="), "&")
	return fmt.Sprintf("%s: %s: %s for %s: %d %s", h.DeviceID, h.Scope, t.lifetime(), resource, response.StatusCode, body), nil
}
