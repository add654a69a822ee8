// Package completion provides the command that prints the completion scripts for shells. It
// replaces cobra's command, whose help also covers macOS and PowerShell and does not fit a
// terminal.
package completion

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Command returns the command "completion" for the program root. args converts errors about
// arguments to the program's usage errors; it may be nil.
func Command(root *cobra.Command, args func(cobra.PositionalArgs) cobra.PositionalArgs) *cobra.Command {
	program := root.Name()
	c := &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script for a shell",
		Long: fmt.Sprintf(`Print a script that lets a shell complete the commands, flags and files of
%[1]s. The Debian package installs the script. bash needs the package
bash-completion; zsh needs compinit.`, program),
		Example: fmt.Sprintf(`  source <(%[1]s completion bash)    # bash: for this shell
  source <(%[1]s completion zsh)     # zsh
  %[1]s completion fish | source     # fish`, program),
		ValidArgs: []cobra.Completion{"bash", "zsh", "fish"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(c *cobra.Command, args []string) error {
			const descriptions = true
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(c.OutOrStdout(), descriptions)
			case "zsh":
				return root.GenZshCompletion(c.OutOrStdout())
			}
			return root.GenFishCompletion(c.OutOrStdout(), descriptions)
		},
	}
	if args != nil {
		c.Args = args(c.Args)
	}
	return c
}

// Prepare adapts the usage texts of the flags to shells if args are a completion request:
// cobra passes them with the back quotes around the name of the value, and only up to the
// first line break.
func Prepare(root *cobra.Command, args []string) {
	if len(args) == 0 || args[0] != cobra.ShellCompRequestCmd {
		return
	}
	plain := strings.NewReplacer("`", "", "\n", " ")
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) { f.Usage = plain.Replace(f.Usage) })
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
}
