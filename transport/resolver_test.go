package transport_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/dpsd-project/dpsd/transport"
)

func TestAMissingNameServerIsReportedWithTheResolverFile(t *testing.T) {
	refused := &net.DNSError{Err: "read udp [::1]:1->[::1]:53: read: connection refused", Name: "h"}
	unknown := &net.DNSError{Err: "no such host", Name: "h", IsNotFound: true}
	for _, test := range []struct {
		name    string
		text    string // contents of the file; "" for no file
		link    string
		err     error
		problem string // "" if the error does not change
	}{
		{"no file", "", "", refused, "does not exist"},
		{"a link of systemd-resolved, which is not running", "", "../run/systemd/resolve/stub-resolv.conf", refused, "is a link to ../run/systemd/resolve/stub-resolv.conf, which does not exist"},
		{"a file of comments", "# nameserver 192.0.2.1\nsearch example\n", "", refused, "contains no name server"},
		{"a name server without an address", "nameserver\n", "", refused, "contains no name server"},
		{"a name server that is not running", "nameserver 127.0.0.1\n", "", refused, ""},
		{"a name that does not exist", "", "", unknown, ""},
		{"another error", "", "", errors.New("connection refused"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "resolv.conf")
			var err error
			switch {
			case test.link != "":
				err = os.Symlink(test.link, file)
			case test.text != "":
				err = os.WriteFile(file, []byte(test.text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			got := transport.Unresolved(&net.OpError{Op: "dial", Net: "tcp", Err: test.err}, file)
			var missing *transport.NoNameServerError
			if errors.As(got, &missing) != (test.problem != "") || missing != nil && missing.Problem != test.problem {
				t.Errorf("got %v", got)
			}
			if !errors.Is(got, test.err) {
				t.Errorf("%v does not wrap the cause", got)
			}
			if test.problem != "" && got.Error() != file+" "+test.problem+": lookup h: "+refused.Err {
				t.Errorf("got %q", got)
			}
		})
	}
}
