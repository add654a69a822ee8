package late_test

import (
	"testing"

	"github.com/dpsd-project/dpsd/late"
)

func TestRegexp(t *testing.T) {
	t.Run("an expression is compiled once", func(t *testing.T) {
		digits := late.Regexp(`^[0-9]+$`)
		if !digits().MatchString("12") || digits().MatchString("x") {
			t.Error("it matches something else")
		}
		if first, again := digits(), digits(); first != again {
			t.Error("it is compiled each time")
		}
	})
	t.Run("a wrong one does no harm until it is used", func(t *testing.T) {
		wrong := late.Regexp(`(`)
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		wrong()
	})
}
