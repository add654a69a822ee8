// Package late compiles regular expressions when they are first used. Compiled at
// start, those of a program's rarest command cost all its others: memory that a daemon
// holds for years, and time.
package late

import (
	"regexp"
	"sync"
)

// Regexp returns a function that compiles the expression once, and then returns it. It
// panics, as regexp.MustCompile does, when the expression is wrong.
func Regexp(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}
