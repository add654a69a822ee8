package check

import (
	"fmt"
	"slices"
	"testing"
)

func TestTheMembersOfAGroupIncludeTheUsersWhosePrimaryGroupItIs(t *testing.T) {
	groups := "root:x:0:\nmosquitto:x:110:\ndpsd-certificate:x:998:mosquitto,edge\nother:x:99:root\nbroken\n"
	users := "root:x:0:0:root:/root:/bin/bash\nbridge:x:1001:998::/:/bin/sh\nedge:x:1002:998::/:/bin/sh\n+\n"
	for gid, want := range map[string][]string{
		"998": {"bridge", "edge", "mosquitto"},
		"110": nil,
		"0":   {"root"},
		"":    nil,
	} {
		if got := members(groups, users, gid); !slices.Equal(got, want) {
			t.Errorf("the members of %q are %q, want %q", gid, got, want)
		}
	}
}

func TestAListOfMembersIsShort(t *testing.T) {
	var g group
	if got := g.list(); got != "none yet" {
		t.Errorf("without members: %q", got)
	}
	for n := range 12 {
		g.members = append(g.members, fmt.Sprint("u", n))
	}
	if got := g.list(); got != "u0, u1, u2, u3, u4, u5, u6, u7, u8, u9 and 2 more" {
		t.Errorf("of 12 members: %q", got)
	}
}
