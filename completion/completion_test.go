package completion_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/test/shipped"
)

// shells are scripts that request the completions of a line as at a terminal and print one
// per line. $1 is the program, $2 the line.
var shells = map[string]struct {
	command  []string
	required bool // in CI
}{
	// The call of compopt, which works only at a terminal, distinguishes file names, bash's
	// fallback, from no completion. The completion script calls it as a builtin.
	"bash": {[]string{"bash", "--norc", "-c", `
. /usr/share/bash-completion/bash_completion
. <("$1" completion bash)
type() { if [ "$*" = "-t compopt" ]; then echo builtin; else builtin type "$@"; fi; }
compopt() { case "$*" in "+o default") files=no ;; esac; }
read -ra COMP_WORDS <<<"$2"
case "$2" in *" ") COMP_WORDS+=("") ;; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$2 COMP_POINT=${#2} COMP_TYPE=9 files=yes
"__start_$1"
if [ "${#COMPREPLY[@]}" -gt 0 ]; then printf '%s\n' "${COMPREPLY[@]}"
elif [ "$files" = yes ]; then compgen -f -- "${COMP_WORDS[COMP_CWORD]}"
fi`, "bash"}, true},
	"zsh": {[]string{"zsh", "-f", "-c", `
autoload -U compinit && compinit -D -u
. <("$1" completion zsh)
_describe() { (( ${#completions} )) && print -rl -- "${(@)completions%%:*}" }
_arguments() { case "$*" in
*-/*) print -rl -- *(/N) ;;
*-g*) print -rl -- *.toml(N) *(/N) ;;
*) print -rl -- *(N) ;;
esac }
words=(${(z)2}); [[ "$2" = *" " ]] && words+=("")
CURRENT=${#words}
"_$1" || true # nothing to offer`, "zsh"}, false},
	"fish": {[]string{"fish", "-N", "-c", `
$argv[1] completion fish | source
complete -C $argv[2] | string replace -r '\t.*' '' | string trim -r -c /
true`}, false},
}

// bin is the directory of the programs.
var bin string

func TestMain(m *testing.M) {
	os.Exit(withPrograms(m.Run))
}

func withPrograms(work func() int) int {
	var err error
	if bin, err = os.MkdirTemp("", "dpsd-test-"); err == nil {
		defer os.RemoveAll(bin)
		err = shipped.Build(bin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "building the programs:", err)
		return 1
	}
	return work()
}

func TestTheShellCompletes(t *testing.T) {
	home := t.TempDir()
	files := filepath.Join(home, "files")
	if err := os.MkdirAll(filepath.Join(files, "directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.toml", "b.txt"} {
		if err := os.WriteFile(filepath.Join(files, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, shell := range shells {
		t.Run(name, func(t *testing.T) {
			program, err := exec.LookPath(shell.command[0])
			if err == nil && name == "bash" {
				_, err = os.Stat("/usr/share/bash-completion/bash_completion")
			}
			switch {
			case err == nil:
			case shell.required && os.Getenv("CI") != "":
				t.Fatal(err)
			default:
				t.Skip("not available: " + err.Error())
			}
			for _, row := range []struct {
				say, line   string
				want, never []string
			}{
				{"the commands", "dpsd ", []string{"run", "version", "completion"}, []string{"a.toml"}},
				{"the flags of a command", "dpsd run --", []string{"--once", "--timeout", "--config"}, nil},
				{"a configuration among files and directories", "dpsd run --config ", []string{"a.toml", "directory"}, nil},
				{"a configuration behind an equals sign", "dpsd run --config=", []string{"a.toml"}, nil},
				{"no file for a command that takes none", "dpsd run ", nil, []string{"a.toml", "b.txt", "directory"}},
				{"no file for a time", "dpsd run --timeout ", nil, []string{"a.toml", "b.txt", "directory"}},
				{"the shells", "dpsd completion ", []string{"bash", "zsh", "fish"}, []string{"a.toml"}},
				{"the shells, of the simulator", "dpsd-sim completion ", []string{"bash", "zsh", "fish"}, nil},
				{"a directory for --dir", "dpsd-sim serve --dir ", []string{"directory"}, nil},
				{"any file for a packet log", "dpsd-sim serve --packet-log ", []string{"a.toml", "b.txt"}, nil},
				{"any file for what is added up", "dpsd-sim log summary ", []string{"a.toml", "b.txt"}, nil},
				{"no file for an address", "dpsd-sim serve --mqtt ", nil, []string{"a.toml", "b.txt"}},
			} {
				name, _, _ := strings.Cut(row.line, " ")
				c := exec.Command(program, append(slices.Clone(shell.command[1:]), name, row.line)...)
				c.Dir = files
				c.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+home)
				out, err := c.CombinedOutput()
				if err != nil {
					t.Errorf("%s: %q: %v\n%s", row.say, row.line, err, out)
				}
				offered := strings.Fields(strings.ReplaceAll(string(out), "--config=", ""))
				for _, want := range row.want {
					if !slices.Contains(offered, want) {
						t.Errorf("%s: %q offers %q, not %s", row.say, row.line, offered, want)
					}
				}
				for _, never := range row.never {
					if slices.Contains(offered, never) {
						t.Errorf("%s: %q offers %s", row.say, row.line, never)
					}
				}
			}
		})
	}
}

func TestTheShellShowsTheUsageOfAFlagWithoutMarkup(t *testing.T) {
	for _, line := range [][]string{{"dpsd", "run", "--"}, {"dpsd-sim", "serve", "--"}} {
		out, err := exec.Command(filepath.Join(bin, line[0]), append([]string{"__complete"}, line[1:]...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(out), "\t") || strings.Contains(string(out), "`") {
			t.Errorf("%v: %s", line, out)
		}
	}
}
