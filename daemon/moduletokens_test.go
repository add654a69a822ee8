package daemon

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/sas"
)

// token gets a token for the client ID and user name of a consumer, from its socket.
func (p *hubPipe) token(t *testing.T) (identity struct{ Host, ClientID, UserName string }, token string) {
	t.Helper()
	c := p.client()
	get := func(r *http.Response, err error, into any) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if err := json.NewDecoder(r.Body).Decode(into); err != nil || r.StatusCode != http.StatusOK {
			t.Fatal(r.Status, err)
		}
	}
	r, err := c.Get("http://dpsd/v1/hub")
	get(r, err, &identity)
	var answer struct{ Token string }
	r, err = c.Post("http://dpsd/v1/token", "application/json", nil)
	get(r, err, &answer)
	return identity, answer.Token
}

// connected connects to the hub with MQTT, as a service does.
func (g *gateway) connected(t *testing.T, p *hubPipe) *mqttv3.Client {
	t.Helper()
	identity, token := p.token(t)
	dialer := *g.Settings.Dialer
	dialer.Host = identity.Host
	conn, err := dialer.Dial(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := mqttv3.Connect(t.Context(), conn, mqttv3.Options{ClientID: identity.ClientID, UserName: identity.UserName, Password: token, KeepAlive: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// lives reports whether a connection still exists after three minutes.
func lives(t *testing.T, c *mqttv3.Client) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	_, err := c.Receive(ctx)
	return err != nil && ctx.Err() != nil
}

// A hub allows each identity one connection (Azure page "Communicate with an IoT hub using the
// MQTT protocol").
func TestTwoServicesDoNotEndEachOthersConnectionsIfEachHasAModule(t *testing.T) {
	for _, test := range []struct {
		says      string
		consumers []consumer.Consumer
		both      bool
	}{
		{"module identities", []consumer.Consumer{{Name: "a", Scope: consumer.Scope{Module: "a"}}, {Name: "b", Scope: consumer.Scope{Module: "b"}}}, true},
		{"a module and the device", []consumer.Consumer{{Name: "a", Scope: consumer.Scope{Module: "a"}}, {Name: "b"}}, true},
		{"the device's identity twice", []consumer.Consumer{{Name: "a"}, {Name: "b"}}, false},
	} {
		t.Run(test.says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t)
				pipes := g.serves("a", "b")
				g.Settings.Consumers = test.consumers
				g.run()
				g.until("assigned", 1)
				time.Sleep(time.Minute)
				synctest.Wait()
				a := g.connected(t, pipes["a"])
				b := g.connected(t, pipes["b"])
				if !lives(t, b) {
					t.Error("the second connection was ended")
				}
				if lives(t, a) != test.both {
					t.Errorf("the first connection lives: %t", !test.both)
				}
				_ = a.Close(t.Context())
				_ = b.Close(t.Context())
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestTheTokenOfAModuleIsSignedWithItsOwnKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"})
		pipes := g.serves("a")
		g.run()
		g.within(time.Minute, "module-created", 1)
		synctest.Wait()
		identity, token := pipes["a"].token(t)
		own := hub.Identity{Host: identity.Host, DeviceID: device, ModuleID: "a"}
		expiry := time.Now().Add(consumer.DefaultLifetime)
		key, err := base64.StdEncoding.DecodeString(*g.sim.Modules(device)[0].Authentication.SymmetricKey.PrimaryKey)
		if err != nil {
			t.Fatal(err)
		}
		if want := sas.Token(own.Resource(false), sas.MAC(key, sas.Statement(own.Resource(false), expiry)), expiry, ""); token != want {
			t.Errorf("got %s, want %s", token, want)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// The observed log also contains the entries for debugging.
func TestTheTokensOfServicesAreNotInTheLogTheFilesTheStatusOrTheMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"})
		g.Settings.Consumers = append(g.Settings.Consumers, consumer.Consumer{Name: "b"})
		pipes := g.serves("a", "b")
		s := g.supervised()
		stop := s.serveConsumers(t.Context())
		g.within(time.Minute, "module-created", 1)
		synctest.Wait()
		var secret []string
		for _, pipe := range pipes {
			_, token := pipe.token(t)
			signature := sas.Signature(token)
			mac, err := base64.StdEncoding.DecodeString(signature)
			if err != nil || len(mac) == 0 {
				t.Fatalf("%q: %v", token, err)
			}
			secret = append(secret, signature, url.QueryEscape(signature), sas.Encode(signature), fmt.Sprintf("%x", mac), string(mac))
			if status, answer := pipe.requested(t, http.MethodPost, "/v1/refused", `{"code": 401003}`); status != http.StatusOK {
				t.Errorf("%d %v", status, answer)
			}
		}
		stored := g.modulesFile(t)
		keys := modules.Keys{Root: stored.Root, Device: deviceOf(g.wantAssigned())}.Pair("a")
		secret = append(secret, keys.Primary, keys.Secondary)

		texts := map[string]string{}
		for _, e := range g.log.All() {
			texts["the log"] += fmt.Sprintln(e.Message, e.ContextMap())
		}
		document, err := json.Marshal(s.statusDocument())
		if err != nil {
			t.Fatal(err)
		}
		texts["the status"] = string(document)
		var metrics strings.Builder
		s.measures.write(&metrics)
		texts["the metrics"] = metrics.String()
		for where, text := range texts {
			if strings.Contains(text, base64.StdEncoding.EncodeToString(stored.Root)) {
				t.Errorf("%s contains the root of the keys", where)
			}
		}
		err = filepath.WalkDir(filepath.Dir(g.Store.Directory), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			texts[path] = string(text)
			return err
		})
		if err != nil || len(texts) < 6 {
			t.Fatalf("%d texts: %v", len(texts), err)
		}
		for where, text := range texts {
			for _, one := range secret {
				if strings.Contains(text, one) {
					t.Errorf("%s contains %q", where, one)
				}
			}
		}
		stop()
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
