package session

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
)

func TestAPayloadWithAByteOrderMarkIsReadAndUTF16IsReported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "payload.json")
	for _, test := range []struct {
		expect, file, want string
		code               fault.Code // the fault's code; "" for no fault
		says               string
	}{
		{"line ends of Windows", "{\r\n\"a\": 1\r\n}\r\n", "{\r\n\"a\": 1\r\n}\r\n", "", ""},
		{"a byte order mark", "\ufeff{\"a\": 1}", "{\"a\": 1}", "", ""},
		{"UTF-16", "\xff\xfe{\x00}\x00", "", fault.InputInvalid, "payload_file " + path + ": the file is UTF-16 text, not UTF-8"},
		{"UTF-16 without a mark", "\x00{\x00 \x00 \x00 \x00}", "", fault.InputInvalid, "the file is UTF-16 text, not UTF-8"},
		{"too much", strings.Repeat(" ", 128<<10) + "{}", "", fault.InputInvalid, "payload_file " + path + ": the file is too large: the limit is 128 KiB"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(test.file), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := ReadPayload(path)
			if string(got) != test.want || (err == nil) != (test.code == "") {
				t.Fatalf("got %q, %v", got, err)
			}
			if f := classify.Classify(err); f.Code != test.code || err != nil && !strings.Contains(f.Error(), test.says) {
				t.Errorf("the fault is %v", f)
			}
		})
	}
	t.Run("the advice for UTF-16 is the command", func(t *testing.T) {
		if err := os.WriteFile(path, []byte("\xff\xfe{\x00}\x00"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadPayload(path)
		if got, want := classify.Classify(err).Advice(), "cp -p "+path+" "+path+".orig && iconv -f UTF-16 -t UTF-8 "+path+".orig >"+path; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
