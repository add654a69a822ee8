package check

import (
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/dpsd-project/dpsd/input"
)

// maxDatabase is the maximum size of /etc/passwd and /etc/group, in bytes.
const maxDatabase = 4 << 20

// group is a group of this machine.
type group struct {
	name    string
	gid     int
	members []string // users, sorted; those of a directory service are missing
}

// lookUpGroup returns a group. The error means that it does not exist.
func lookUpGroup(name string) (group, error) {
	found, err := user.LookupGroup(name)
	if err != nil {
		return group{}, err
	}
	gid, err := strconv.Atoi(found.Gid)
	if err != nil {
		return group{}, err
	}
	groups, _ := input.Read("/etc/group", maxDatabase) // without them, the members are unknown
	users, _ := input.Read("/etc/passwd", maxDatabase)
	return group{name, gid, members(string(groups), string(users), found.Gid)}, nil
}

// members returns the members of a group according to group(5), and the users whose primary
// group it is according to passwd(5).
func members(groups, users, gid string) (names []string) {
	for line := range strings.Lines(groups) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(fields) == 4 && fields[2] == gid {
			names = append(names, strings.FieldsFunc(fields[3], func(r rune) bool { return r == ',' })...)
		}
	}
	for line := range strings.Lines(users) {
		if fields := strings.Split(line, ":"); len(fields) == 7 && fields[3] == gid {
			names = append(names, fields[0])
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// maxMembers is the number of members that a result names.
const maxMembers = 10

// list returns the members for people.
func (g group) list() string {
	if len(g.members) == 0 {
		return "none yet"
	}
	names := g.members[:min(len(g.members), maxMembers)]
	list := strings.Join(names, ", ")
	if more := len(g.members) - len(names); more > 0 {
		list += " and " + strconv.Itoa(more) + " more"
	}
	return list
}

// groupName returns the name of a group, or its number if it has none.
func groupName(gid int) string {
	id := strconv.Itoa(gid)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}
