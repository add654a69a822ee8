package report

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestCollectingAPartHasATimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		defer close(never)
		began := time.Now()
		got := part{name: "x", limit: time.Minute, collect: func(context.Context) piece {
			<-never
			return piece{}
		}}.within(t.Context())
		if got.err == nil || !strings.Contains(got.err.Error(), "gave up after 1m0s") || time.Since(began) > 2*time.Minute {
			t.Errorf("after %s it says %v", time.Since(began), got.err)
		}
	})
	t.Run("a program is stopped, and its output so far is kept", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		said := make(chan piece)
		go func() { said <- tool(ctx, "sh", "-c", "echo begun; exec sleep 1000") }()
		time.AfterFunc(200*time.Millisecond, cancel)
		got := <-said
		if got.err == nil || !strings.Contains(got.err.Error(), "took too long") {
			t.Errorf("it says %q, %v", got.data, got.err)
		}
	})
}

func TestTheLastCompleteLinesOfAProgramsOutputAreKept(t *testing.T) {
	for text, want := range map[string]string{
		"a\nb\n":              "a\nb\n",
		"secret-12345\nend\n": "end\n",
		strings.Repeat("0123456789\n", 100) + "z\n": "z\n",
		"": "",
	} {
		kept := &tail{most: 10}
		for piece := range strings.SplitAfterSeq(text, "5") {
			if _, err := kept.Write([]byte(piece)); err != nil {
				t.Fatal(err)
			}
		}
		if got := string(kept.lines()); got != want {
			t.Errorf("of %.40q… %q is kept, want %q", text, got, want)
		}
	}
}

func TestOnlyTheNamesOfAUnitsEnvironmentVariablesAreKept(t *testing.T) {
	text := `# /etc/systemd/system/dpsd.service.d/proxy.conf
[Service]
Environment="HTTPS_PROXY=http://gateway:hunter2@proxy:3128" "NO_PROXY=.example" \
  "OTHER=hunter2 hunter3"
SetCredential=dps-primary-key:hunter2
Environment=
LoadCredential=dps-primary-key
ExecStart=/usr/bin/dpsd run
`
	want := `# /etc/systemd/system/dpsd.service.d/proxy.conf
[Service]
Environment=[masked] HTTPS_PROXY NO_PROXY OTHER
SetCredential=[masked]
Environment=
LoadCredential=dps-primary-key
ExecStart=/usr/bin/dpsd run
`
	got := maskedUnit(piece{data: []byte(text)})
	if string(got.data) != want {
		t.Errorf("the masked unit is\n%s", got.data)
	}
	found := false
	for _, secret := range got.secrets {
		found = found || string(secret) == "hunter2"
	}
	if !found {
		t.Errorf("the password is not a secret of the other parts: %q", got.secrets)
	}
}
