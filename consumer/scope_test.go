package consumer_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/sas"
)

// guarded is a server that reports everything that exceeds the scope of its consumer.
type guarded struct {
	*fixture
	resource string
	clock    *hasty
}

// guard starts a server for a consumer that may not use the certificate.
func guard(t testing.TB, scope consumer.Scope, resource string) guarded {
	t.Helper()
	g := guarded{resource: resource, clock: &hasty{}}
	g.fixture = start(t, consumer.Consumer{Name: "a", Scope: scope}, func(s *consumer.Server) {
		s.Now = g.clock.now
		sign := s.MAC
		s.MAC = func(ctx context.Context, of hub.Identity, statement []byte) ([]byte, error) {
			signed, expiry, _ := strings.Cut(string(statement), "\n")
			own := assigned().Hub
			until, err := strconv.ParseInt(expiry, 10, 64)
			if own.ModuleID = scope.Module; of != own || signed != sas.Encode(resource) || err != nil || until > g.clock.latest()+3600 {
				t.Errorf("the server signs %q for %+v", statement, of)
			}
			return sign(ctx, of, statement)
		}
	})
	state := assigned()
	state.Modules = map[string]consumer.Module{"updater": {Ready: true}, "other": {Ready: true}}
	state.Certificate = &consumer.Files{Certificate: "/secret/chain.pem", PrivateKey: "/secret/key.pem", NotAfter: noon}
	g.board.Post(state)
	return g
}

// guards returns a server for each kind of scope.
func guards(t testing.TB) []guarded {
	t.Helper()
	const device = "hub.azure-devices.net/devices/gw-1"
	return []guarded{
		guard(t, consumer.Scope{}, device),
		guard(t, consumer.Scope{Events: true}, device+"/messages/events"),
		guard(t, consumer.Scope{Module: "updater"}, device+"/modules/updater"),
	}
}

// send sends bytes, and returns everything that the server sends back.
func (g guarded) send(request []byte) []byte {
	g.t.Helper()
	var d net.Dialer
	c, err := d.DialContext(g.t.Context(), "unix", g.path)
	if err != nil {
		g.t.Error(err)
		return nil
	}
	defer c.Close()
	_, _ = c.Write(request) // the server may close the connection before it has read everything
	_ = c.(*net.UnixConn).CloseWrite()
	answer, _ := io.ReadAll(c)
	return answer
}

var (
	anyToken = regexp.MustCompile(`(?i)SharedAccessSignature[^"]*`)
	form     = regexp.MustCompile(`^SharedAccessSignature sr=([^&]+)&sig=([^&]+)&se=([0-9]+)$`)
)

// verify reports everything in an answer that exceeds the scope, and returns the number of
// tokens in it.
func (g guarded) verify(request, answer []byte) int {
	g.t.Helper()
	complain := func(what string) { g.t.Errorf("%s:\n%q\nanswer:\n%q", what, request, answer) }
	if bytes.Contains(answer, []byte("/secret/")) {
		complain("the answer contains the paths of the certificate")
	}
	if bytes.Contains(answer, key) {
		complain("the answer contains the key")
	}
	if strings.Contains(strings.ToLower(string(answer)), "skn=") {
		complain("the answer contains skn")
	}
	found := anyToken.FindAllString(string(answer), -1)
	for _, token := range found {
		part := form.FindStringSubmatch(token)
		if part == nil {
			complain("a token has another form")
			continue
		}
		resource, err := url.PathUnescape(part[1])
		if err != nil || resource != g.resource {
			complain("a token is for " + resource)
		}
		expiry, err := strconv.ParseInt(part[3], 10, 64)
		if err != nil || expiry > g.clock.latest()+3600 {
			complain("a token expires at " + part[3])
		}
		text, err := url.PathUnescape(part[2])
		if err != nil {
			complain("a signature is not encoded correctly")
		}
		signature, err := base64.StdEncoding.DecodeString(text)
		if err != nil || !hmac.Equal(signature, sas.MAC(key, []byte(part[1]+"\n"+part[3]))) {
			complain("a signature does not match its token")
		}
	}
	return len(found)
}

// attacker generates requests.
type attacker struct{ *rand.Rand }

// of returns one of the texts.
func (a attacker) of(texts ...string) string { return texts[a.IntN(len(texts))] }

// mostly usually returns the first text, and otherwise one of the others: the response to a request
// with several mistakes is about the first mistake only.
func (a attacker) mostly(usual string, others ...string) string {
	if a.IntN(8) > 0 {
		return usual
	}
	return a.of(others...)
}

// victim returns a resource that none of the consumers may use.
func (a attacker) victim() string {
	identity := hub.Identity{Host: a.of("hub.azure-devices.net", "other.azure-devices.net"), DeviceID: a.of("gw-1", "gw-2", "../gw-2", "*"), ModuleID: a.of("other", "updater/../other", "$edgeHub")}
	return a.of(identity.Resource(false), identity.Resource(true), "0ne00111111/registrations/gw-1", "hub.azure-devices.net/devices", "/", "")
}

func (a attacker) target() string {
	path := a.of("/v1/token", "/v1/token", "/v1/token", "/v1/hub", "/v1/certificate", "/v1/refused", "/v1/events")
	victim := a.victim()
	return a.mostly(path,
		path+"?", path+"?resource="+victim, path+"?sr="+sas.Encode(victim)+"&skn=registration", path+"?lifetime=86400", path+"#"+victim, path+";resource="+victim,
		path+"/", path+"/"+victim, "/"+path, path+"/../token", "/v1/./token", "/V1/TOKEN", strings.ReplaceAll(path, "t", "%74"), path+"%00", path+"%3fsr="+victim, path+`\..\token`,
		"http://"+victim+path, "https://dpsd"+path, "http:"+path, "*", "//"+victim, "hub.azure-devices.net:443", "/devices/gw-1/modules/other", "/sign", "/identities/identity",
		"/v2/token", "/v1", "/", "")
}

func (a attacker) header() string {
	victim := a.victim()
	return a.of("Host: "+victim, "Host:", "Authorization: "+victim, "X-Resource: "+victim, "X-Original-URL: /v1/certificate", "X-Rewrite-URL: /v1/token?sr="+victim,
		"X-HTTP-Method-Override: POST", "X-Forwarded-Host: "+victim, "X-Forwarded-For: root", "Forwarded: for="+victim, "Content-Type: application/json", "Content-Type: application/x-www-form-urlencoded",
		"Content-Encoding: gzip", "Expect: 100-continue", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", "Connection: close", "Connection: Content-Length",
		"Cookie: scope=device", "Trailer: Content-Length", " folded: "+victim, "Space : x", "Content-Length : 5", "\x00: x", "X: "+strings.Repeat("x", a.IntN(30_000)), "LISTEN_FDNAMES: other")
}

func (a attacker) member() string {
	return a.mostly(a.of(`"lifetime":60`, `"lifetime":3600`), `"lifetime":`+strconv.Itoa(a.IntN(100_000)-1000), `"lifetime":"3600"`, `"lifetime":1e9`, `"lifetime":null`, `"lifetime":[60]`, `"LIFETIME":60`,
		`"lifetime\u0000":60`, `"resource":"`+a.victim()+`"`, `"sr":"`+a.victim()+`"`, `"skn":"registration"`, `"deviceId":"gw-2"`, `"moduleId":"other"`, `"scope":"device"`, `"expiry":"2099-01-01T00:00:00Z"`,
		`"se":4102444800`, `"data":"aHVi"`, `"code":`+a.of("5", "401003", `"unreachable"`, "7", "{}"), `"":1`)
}

func (a attacker) body() string {
	members := make([]string, min(a.IntN(3), a.IntN(4)))
	for i := range members {
		members[i] = a.member()
	}
	object := "{" + strings.Join(members, ",") + "}"
	return a.mostly(a.of(object, object, ""), object+object, "["+object+"]", object+"\x00", "\xef\xbb\xbf"+object, "sr="+a.victim(), strings.Repeat(" ", a.IntN(2000))+object, strings.Repeat("[", a.IntN(2000)), "null")
}

// request returns a request, or something similar. Its body may contain other requests.
func (a attacker) request(depth int) string {
	body := a.body()
	if depth > 0 && a.IntN(4) == 0 {
		body += a.request(depth - 1)
	}
	method := a.mostly("POST", "GET", "PUT", "HEAD", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PRI", "post", "")
	target := a.target()
	if a.IntN(2) == 0 && (target == "/v1/hub" || target == "/v1/certificate" || target == "/v1/events") {
		method, body = "GET", ""
	}
	lines := []string{method + " " + target + " " + a.mostly("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.11", "")}
	if a.IntN(16) > 0 {
		lines = append(lines, "Host: dpsd")
	}
	for range min(a.IntN(3), a.IntN(3)) {
		lines = append(lines, a.header())
	}
	length := "Content-Length: " + strconv.Itoa(len(body))
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	switch a.IntN(20) {
	case 0: // nothing: the body is the next request
	case 1:
		lines, body = append(lines, "Transfer-Encoding: "+a.of("chunked", " chunked", "xchunked", "identity", "chunked, chunked", "gzip, chunked", "Chunked", "\vchunked")), chunked
	case 2: // both: a proxy and the server may disagree
		lines, body = append(lines, length, "Transfer-Encoding: chunked"), chunked
	case 3:
		lines = append(lines, length, "Content-Length: "+strconv.Itoa(a.IntN(50)))
	case 4:
		lines = append(lines, "Content-Length: "+a.of("-1", "+2", "0x2", "2, 2", "", "99999999999999999999", strconv.Itoa(len(body)/2), strconv.Itoa(len(body)+10)))
	default:
		lines = append(lines, length)
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}

// bytes returns one to three requests in a row, which may be damaged.
func (a attacker) bytes() []byte {
	var all []byte
	for range 1 + a.IntN(3) {
		all = append(all, a.request(2)...)
	}
	if a.IntN(4) == 0 {
		for range 1 + a.IntN(3) {
			at := a.IntN(len(all))
			switch a.IntN(3) {
			case 0:
				all[at] = byte(a.IntN(256))
			case 1:
				all = append(all[:at], append([]byte{a.of("\r", "\n", " ", "\t", "\x00", ":", "%", "/")[0]}, all[at:]...)...)
			case 2:
				all = append(all[:at+1], all[at:]...)
			}
		}
	}
	return all
}

func TestTenThousandRequestsGetNothingBeyondTheScope(t *testing.T) {
	all := guards(t)
	const requests, clients = 10_000, 50
	var mu sync.Mutex
	tokens, statuses := 0, map[string]int{}
	status := regexp.MustCompile(`HTTP/1\.[01] ([0-9]{3}) `)
	var running sync.WaitGroup
	for n := range clients {
		running.Go(func() {
			a := attacker{rand.New(rand.NewPCG(19, uint64(n)))}
			for range requests / clients {
				g, request := all[a.IntN(len(all))], a.bytes()
				answer := g.send(request)
				found := g.verify(request, answer)
				mu.Lock()
				tokens += found
				for _, s := range status.FindAllSubmatch(answer, -1) {
					statuses[string(s[1])]++
				}
				mu.Unlock()
			}
		})
	}
	running.Wait()
	// Otherwise, the requests have not reached their targets.
	if tokens < 1000 {
		t.Errorf("the requests got only %d tokens", tokens)
	}
	for _, s := range []string{"200", "400", "403", "404", "405", "413", "431"} {
		if statuses[s] < 10 {
			t.Errorf("only %d answers have the status %s", statuses[s], s)
		}
	}
	t.Logf("%d tokens, answers: %v", tokens, statuses)
}

func TestTheVerifierOfTheseTestsFindsViolations(t *testing.T) {
	token := func(resource string, life time.Duration, key []byte, policy string) string {
		expiry := noon.Add(life)
		return sas.Token(resource, sas.MAC(key, sas.Statement(resource, expiry)), expiry, policy)
	}
	const right = "hub.azure-devices.net/devices/gw-1"
	for name, answer := range map[string]string{
		"another device":      token("hub.azure-devices.net/devices/gw-2", time.Hour, key, ""),
		"a wider resource":    token("hub.azure-devices.net/devices", time.Hour, key, ""),
		"a longer lifetime":   token(right, time.Hour+time.Second, key, ""),
		"another key":         token(right, time.Hour, []byte("another"), ""),
		"a token for DPS":     token(right, time.Hour, key, "registration"),
		"the path of the key": "/secret/key.pem",
		"the key":             string(key),
	} {
		fake := &testing.T{}
		guarded{&fixture{t: fake}, right, &hasty{}}.verify(nil, []byte(answer))
		if !fake.Failed() {
			t.Errorf("%s is not found", name)
		}
	}
	if n := (guarded{&fixture{t: t}, right, &hasty{}}).verify(nil, []byte(`{"token":"`+token(right, time.Hour, key, "")+`"}`)); n != 1 {
		t.Errorf("%d tokens were found", n)
	}
}

func FuzzRequest(f *testing.F) {
	a := attacker{rand.New(rand.NewPCG(1, 1))}
	for range 100 {
		f.Add(a.bytes())
	}
	all := guards(f)
	f.Fuzz(func(t *testing.T, request []byte) {
		for _, g := range all {
			g.fixture = &fixture{t: t, path: g.path}
			g.verify(request, g.send(request))
		}
	})
}
