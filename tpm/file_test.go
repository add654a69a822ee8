package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"

	"github.com/dpsd-project/dpsd/tpm"
)

// read reads a file in testdata, which was created with swtpm, tpm2-openssl or go-tpm-keyfiles.
func read(t testing.TB, name string) []byte {
	t.Helper()
	return must(os.ReadFile(filepath.Join("testdata", name+".pem")))(t)
}

func TestAFileSaysWhatItContainsWithoutATPM(t *testing.T) {
	for name, want := range map[string]tpm.File{
		"ec-p256":              {Algorithm: tpm.P256, Parent: tpm.Owner},
		"ec-p384":              {Algorithm: tpm.P384, Parent: tpm.Owner},
		"ec-p521":              {Algorithm: tpm.P521, Parent: tpm.Owner},
		"rsa-2048":             {Algorithm: tpm.RSA2048, Parent: tpm.Owner},
		"hmac-sha256":          {Algorithm: tpm.HMAC, Parent: tpm.Owner},
		"imported":             {Algorithm: tpm.P256, Parent: tpm.Owner},
		"persistent-parent":    {Algorithm: tpm.P256, Parent: 0x81000001},
		"openssl-ec-p256":      {Algorithm: tpm.P256, Parent: tpm.Owner},
		"openssl-rsa-2048":     {Algorithm: tpm.RSA2048, Parent: tpm.Owner},
		"openssl-password":     {Algorithm: tpm.P256, Parent: tpm.Owner, Protected: true},
		"keyfiles-description": {Algorithm: tpm.P256, Parent: tpm.Owner},
		"keyfiles-importable":  {Algorithm: tpm.P256, Parent: tpm.Owner},
		"keyfiles-policy":      {Algorithm: tpm.P256, Parent: tpm.Owner, Policy: true},
	} {
		text := read(t, name)
		if !tpm.Is(text) {
			t.Errorf("%s is not recognized", name)
		}
		f, err := tpm.Parse(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if f.Algorithm != want.Algorithm || f.Parent != want.Parent || f.Protected != want.Protected || f.Policy != want.Policy {
			t.Errorf("%s: %+v", name, f)
		}
		theirs := must(keyfile.Decode(text))(t)
		if f.Algorithm == tpm.HMAC {
			continue
		}
		switch key := must(theirs.PublicKey())(t).(type) {
		case *ecdsa.PublicKey:
			if !key.Equal(f.Public()) {
				t.Errorf("%s: the public keys differ", name)
			}
		case *rsa.PublicKey:
			if !key.Equal(f.Public()) {
				t.Errorf("%s: the public keys differ", name)
			}
		}
	}
	_, err := tpm.Parse(read(t, "keyfiles-sealed"))
	wantKind(t, err, tpm.Unsupported)
}

func TestTheFileMayContainCertificatesAndCRLF(t *testing.T) {
	text := bytes.ReplaceAll(read(t, "ec-p256"), []byte("\n"), []byte(" \r\n"))
	chain := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	if f := must(tpm.Parse([]byte(chain + string(text) + chain)))(t); f.Algorithm != tpm.P256 {
		t.Errorf("%+v", f)
	}
	if tpm.Is([]byte(chain)) {
		t.Error("a certificate is taken for a key")
	}
}

// content returns the DER encoding in a file.
func content(t testing.TB, name string) []byte {
	t.Helper()
	block, _ := pem.Decode(read(t, name))
	return block.Bytes
}

func armor(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: der})
}

// edit replaces one part of the content of a file.
func edit(t testing.TB, name, from, to string) []byte {
	t.Helper()
	der := content(t, name)
	if bytes.Count(der, []byte(from)) != 1 {
		t.Fatalf("%x is not in %s once", from, name)
	}
	return armor(bytes.Replace(der, []byte(from), []byte(to), 1))
}

func TestAMalformedFileIsRefused(t *testing.T) {
	valid := read(t, "ec-p256")
	der := content(t, "ec-p256")
	for _, c := range []struct {
		expect string
		text   []byte
		want   tpm.Kind
		says   string
	}{
		{"a text without a key is damaged", []byte("text"), tpm.Damaged, "BEGIN TSS2"},
		{"a key without an end is damaged", valid[:200], tpm.Damaged, "is missing"},
		{"a second key is damaged", append(valid[:len(valid):len(valid)], valid...), tpm.Damaged, "second"},
		{"a second key within the first is damaged", bytes.Replace(valid, []byte("\n"), []byte("\n-----BEGIN TSS2 PRIVATE KEY-----\n"), 1), tpm.Damaged, "second"},
		{"invalid base64 is damaged", bytes.Replace(valid, []byte("MIH"), []byte("M!H"), 1), tpm.Damaged, "base64"},
		{"a huge block is damaged", armor(make([]byte, 1<<20)), tpm.Damaged, "maximum is 8192"},
		{"an empty block is damaged", armor(nil), tpm.Damaged, "DER"},
		{"an incomplete sequence is damaged", armor(der[:len(der)-1]), tpm.Damaged, "DER"},
		{"text after the sequence is damaged", armor(append(der[:len(der):len(der)], 0)), tpm.Damaged, "DER"},
		{"another type is unsupported", edit(t, "ec-p256", "\x67\x81\x05\x0a\x01\x03", "\x67\x81\x05\x0a\x01\x09"), tpm.Unsupported, "67 81 05 0a 01 09"},
		{"a transient parent is unsupported", edit(t, "persistent-parent", "\x02\x05\x00\x81\x00\x00\x01", "\x02\x05\x00\x80\x00\x00\x01"), tpm.Unsupported, "0x80000001"},
		{"the platform as the parent is unsupported", edit(t, "ec-p256", "\x40\x00\x00\x01", "\x40\x00\x00\x0c"), tpm.Unsupported, "0x4000000c"},
		{"a negative parent is damaged", edit(t, "persistent-parent", "\x02\x05\x00\x81\x00\x00\x01", "\x02\x05\x01\x81\x00\x00\x01"), tpm.Damaged, "DER"},
		{"a length beyond the public part is damaged", edit(t, "ec-p256", "\x04\x58\x00\x56", "\x04\x58\xff\xff"), tpm.Damaged, "DER"},
		{"a length below the public part is damaged", edit(t, "ec-p256", "\x04\x58\x00\x56", "\x04\x58\x00\x55"), tpm.Damaged, "DER"},
		{"a length beyond the private part is damaged", edit(t, "ec-p256", "\x04\x81\x80\x00\x7e", "\x04\x81\x80\xff\xff"), tpm.Damaged, "DER"},
		{"an unknown kind of key is unsupported", edit(t, "ec-p256", "\x00\x56\x00\x23", "\x00\x56\x00\x25"), tpm.Unsupported, "0x0025"},
		{"another curve is unsupported", edit(t, "ec-p256", "\x00\x10\x00\x10\x00\x03\x00\x10", "\x00\x10\x00\x10\x00\x20\x00\x10"), tpm.Unsupported, "curve 0x0020"},
		{"a coordinate that is longer than the public part is damaged", edit(t, "ec-p256", "\x00\x10\x00\x10\x00\x03\x00\x10\x00\x20", "\x00\x10\x00\x10\x00\x03\x00\x10\xff\xff"), tpm.Damaged, "public part"},
		{"a restricted key is unsupported", edit(t, "ec-p256", "\x00\x04\x04\x72", "\x00\x05\x04\x72"), tpm.Unsupported, "restricted"},
		{"a key that cannot sign is unsupported", edit(t, "ec-p256", "\x00\x04\x04\x72", "\x00\x02\x04\x72"), tpm.Unsupported, "cannot sign"},
		{"RSA with another length than its modulus is damaged", edit(t, "rsa-2048", "\x00\x10\x00\x10\x08\x00", "\x00\x10\x00\x10\x0c\x00"), tpm.Damaged, "public part"},
		{"an even exponent is unsupported", edit(t, "rsa-2048", "\x08\x00\x00\x00\x00\x00\x01\x00", "\x08\x00\x00\x00\x00\x04\x01\x00"), tpm.Unsupported, "RSA with 2048 bits"},
	} {
		t.Run(c.expect, func(t *testing.T) {
			_, err := tpm.Parse(c.text)
			wantKind(t, err, c.want)
			if !strings.Contains(err.Error(), c.says) {
				t.Error(err)
			}
		})
	}
	t.Run("a point that is not on the curve is damaged", func(t *testing.T) {
		damaged := bytes.Clone(der)
		at := bytes.Index(damaged, []byte("\x00\x10\x00\x10\x00\x03\x00\x10\x00\x20"))
		damaged[at+10] ^= 1
		_, err := tpm.Parse(armor(damaged))
		wantKind(t, err, tpm.Damaged)
	})
	t.Run("each shortened file is an error", func(t *testing.T) {
		for n := range der {
			if _, err := tpm.Parse(armor(der[:n])); err == nil {
				t.Errorf("%d bytes are accepted", n)
			}
		}
	})
}

func TestWithoutUserWithAuthTheKeyNeedsAPolicy(t *testing.T) {
	if f := must(tpm.Parse(edit(t, "ec-p256", "\x00\x04\x04\x72", "\x00\x04\x04\x32")))(t); !f.Policy {
		t.Errorf("%+v", f)
	}
}

func TestAFileThatDoesNotStateThatThereIsNoPasswordIsProtected(t *testing.T) {
	for _, emptyAuth := range []string{"\xa0\x03\x01\x01\x00", "\xa0\x03\x04\x01\xff", "\xa0\x03\x01\x00\xff"} {
		if f := must(tpm.Parse(edit(t, "ec-p256", "\xa0\x03\x01\x01\xff", emptyAuth)))(t); !f.Protected {
			t.Errorf("%x: %+v", emptyAuth, f)
		}
	}
}

// allocated returns how many bytes a function allocates: the minimum of three calls.
func allocated(f func()) uint64 {
	least := ^uint64(0)
	for range 3 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	return least
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.pem")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		block, _ := pem.Decode(must(os.ReadFile(file))(f))
		f.Add(block.Bytes)
	}
	f.Add(make([]byte, 1<<20))
	f.Fuzz(func(t *testing.T, der []byte) {
		text := []byte("-----BEGIN TSS2 PRIVATE KEY-----\n" + base64.StdEncoding.EncodeToString(der) + "\n-----END TSS2 PRIVATE KEY-----\n")
		var file *tpm.File
		var err error
		if n := allocated(func() { file, err = tpm.Parse(text) }); n > 64<<10 {
			t.Errorf("Parse has allocated %d bytes", n)
		}
		if (file == nil) != (err != nil) {
			t.Errorf("%v, %v", file, err)
		}
		if file != nil && (file.Algorithm == tpm.HMAC) != (file.Public() == nil) {
			t.Errorf("%+v", file)
		}
		_, _ = tpm.Parse(der)
	})
}

// player answers each command with the next response.
type player struct {
	responses []byte
	rest      []byte
}

func (p *player) Write(b []byte) (int, error) {
	p.rest = nil
	if len(p.responses) > 0 {
		n := min(int(p.responses[0]), len(p.responses)-1)
		body := p.responses[1 : 1+n]
		p.responses = p.responses[1+n:]
		p.rest = body
	}
	return len(b), nil
}

func (p *player) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *player) Close() error { return nil }

func FuzzResponses(f *testing.F) {
	f.Add([]byte{10, 0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1})
	f.Add([]byte{14, 0x80, 2, 0, 0, 0, 14, 0, 0, 0, 0, 0x80, 0, 0, 0})
	f.Add([]byte{10, 0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	keys := []*tpm.File{must(tpm.Parse(read(f, "ec-p256")))(f), must(tpm.Parse(read(f, "rsa-2048")))(f), must(tpm.Parse(read(f, "persistent-parent")))(f), must(tpm.Parse(read(f, "hmac-sha256")))(f)}
	f.Fuzz(func(t *testing.T, responses []byte) {
		d := &tpm.Device{Deadline: time.Millisecond, Open: func(string) (io.ReadWriteCloser, error) { return &player{responses: responses}, nil }}
		for _, key := range keys {
			if k, err := d.Load(t.Context(), key); err == nil {
				if key.Algorithm == tpm.HMAC {
					_, _ = k.HMAC(nil)
				} else {
					_ = sign(k)
				}
				_ = k.Close()
			}
		}
		_, _ = d.Status(t.Context())
		_, _ = d.List(t.Context())
		_, _ = d.Create(t.Context(), tpm.P256, tpm.Owner)
	})
}
