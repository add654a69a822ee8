package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// enrollDevice creates an individual enrollment with the service API, registers the device
// over HTTPS, and prints the first answer: enroll ID [DIR]. DIR is the directory of "serve";
// without it, the environment is that of "exec".
func enrollDevice() {
	line, err := enrollAndRegister(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(line)
}

func enrollAndRegister(id string, dir []string) (string, error) {
	connection, caFile, scope, port := os.Getenv("PROVISIONING_CONNECTION_STRING"), os.Getenv("DPS_CA_FILE"), os.Getenv("DPS_ID_SCOPE"), os.Getenv("DPS_WEBSOCKET_PORT")
	if len(dir) > 0 {
		text, err := os.ReadFile(filepath.Join(dir[0], "endpoint.json"))
		if err != nil {
			return "", err
		}
		var endpoint struct {
			CAFile, IDScope       string
			WebSocketPort         int
			ServiceConnectionFile string
		}
		if err := json.Unmarshal(text, &endpoint); err != nil {
			return "", err
		}
		if text, err = os.ReadFile(endpoint.ServiceConnectionFile); err != nil {
			return "", err
		}
		connection, caFile, scope, port = strings.TrimSpace(string(text)), endpoint.CAFile, endpoint.IDScope, fmt.Sprint(endpoint.WebSocketPort)
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(connection, ";") {
		key, value, _ := strings.Cut(part, "=")
		parts[key] = value
	}
	if parts["HostName"] == "" {
		return "", errors.New("no connection string")
	}
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	put := func(where, resource, key, name, body string) (int, []byte, error) {
		raw, err := base64.StdEncoding.DecodeString(key)
		if err != nil {
			return 0, nil, err
		}
		sr, se := url.QueryEscape(resource), time.Now().Add(time.Hour).Unix()
		mac := hmac.New(sha256.New, raw)
		fmt.Fprintf(mac, "%s\n%d", sr, se)
		r, err := http.NewRequest(http.MethodPut, "https://"+where+"?api-version=2021-10-01", strings.NewReader(body))
		if err != nil {
			return 0, nil, err
		}
		r.Header.Set("Authorization", fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&skn=%s&se=%d", sr, url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), name, se))
		answer, err := client.Do(r)
		if err != nil {
			return 0, nil, err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return answer.StatusCode, text, err
	}
	status, text, err := put(parts["HostName"]+"/enrollments/"+id, parts["HostName"], parts["SharedAccessKey"], parts["SharedAccessKeyName"], `{"attestation":{"type":"symmetricKey"}}`)
	if err != nil {
		return "", err
	}
	if status != http.StatusOK {
		return "", fmt.Errorf("%d %s", status, text)
	}
	var created struct {
		Attestation struct{ SymmetricKey struct{ PrimaryKey string } }
	}
	if err := json.Unmarshal(text, &created); err != nil {
		return "", err
	}
	resource := scope + "/registrations/" + id
	_, text, err = put("localhost:"+port+"/"+resource+"/register", resource, created.Attestation.SymmetricKey.PrimaryKey, "registration", "{}")
	if err != nil {
		return "", err
	}
	var registered struct{ Status string }
	err = json.Unmarshal(text, &registered)
	return fmt.Sprintf("%d %s %s", status, registered.Status, id), err
}
