package transport

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

func TestTheFileWithTheSystemsRootsIsTheFirstBundleThatHasOne(t *testing.T) {
	dir := t.TempDir()
	empty, full, later := filepath.Join(dir, "empty"), filepath.Join(dir, "full"), filepath.Join(dir, "later")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issue(t, "root", nil, nil).Raw})
	for path, content := range map[string][]byte{empty: []byte("# no root\n"), full: text, later: text} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := firstBundle([]string{filepath.Join(dir, "missing"), empty, full, later}); got != full {
		t.Errorf("the bundle is %q, want %q", got, full)
	}
	if got := firstBundle([]string{empty}); got != "" {
		t.Errorf("a file without roots is %q", got)
	}
	t.Setenv("SSL_CERT_FILE", later)
	if got := SystemRoots(); got != later {
		t.Errorf("with SSL_CERT_FILE, the file is %q", got)
	}
}
