package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/setup"
)

// initOptions are the flags of "dpsd init".
type initOptions struct {
	idScope, registrationID, endpoint string
	keyFile, groupKeyFile             string
	certificate, privateKey           string
	settings                          string // file with further tables
	replace, dryRun, offline          bool
	timeout                           time.Duration
}

func initCommand() *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Set up this gateway, step by step",
		Long: `Set up this gateway. On a terminal, the command asks for each value that no flag
sets: the ID Scope, the type of the enrollment, the Registration ID, and the key
or certificate. The questions use the terms of the Azure portal. The command
then writes dpsd.toml, and the key or certificate in the directory keys next to
it, checks the configuration and the connection, starts the service, and waits
for the assignment.

The key never appears on the screen or in an argument: paste it, or name a file
(- for standard input). From the key of an enrollment group, the command derives
the key of this gateway, and stores only the derived key. If you use a
certificate, the command copies it and its private key, and the common name of
the certificate is the Registration ID.

Existing files are replaced only with --replace, which keeps the other settings
of dpsd.toml, and saves each replaced file as FILE.orig.

Exit codes: 0 if the gateway is assigned or, if no service was started, if no
step of the check failed; 1 if not; 4 if --timeout expired; 78 if the FILE of
--settings is invalid.`,
		Example: `  sudo dpsd init
  dpsd init --dry-run
  dpsd init --id-scope 0ne1 --registration-id gw-1 --key-file gw-1.key
  dpsd init --id-scope 0ne1 --certificate gw.pem --private-key gw.key
  dpsd init --replace --id-scope 0ne2    # change one answer`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkTimeout(o.timeout, true, ""); err != nil {
				return err
			}
			ctx, stop := interruptible(0, syscall.SIGHUP, syscall.SIGQUIT)
			defer stop()
			file := configOf(cmd)
			return asRoot(setUp(ctx, file, o), file, "init")
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.idScope, "id-scope", "", "ID Scope of the DPS instance, from its Overview\npage in the portal")
	f.StringVar(&o.registrationID, "registration-id", "", "registration `ID` of this gateway; %m is the\nmachine ID, and %H the host name")
	f.StringVar(&o.keyFile, "key-file", "", "read the symmetric key of this gateway from `FILE`")
	f.StringVar(&o.groupKeyFile, "group-key-file", "", "derive the key of this gateway from the key of the\nenrollment group in `FILE`")
	f.StringVar(&o.certificate, "certificate", "", "copy the PEM certificate of this gateway from `FILE`")
	f.StringVar(&o.privateKey, "private-key", "", "copy the private key of the certificate from `FILE`\n(default: the file of the certificate)")
	f.StringVar(&o.endpoint, "endpoint", "", "register with the host `NAME` instead of the global\nendpoint")
	f.StringVar(&o.settings, "settings", "", "also write the tables in the TOML `FILE`, such as\n[transport] with a proxy")
	f.BoolVar(&o.replace, "replace", false, "replace existing files")
	f.BoolVar(&o.dryRun, "dry-run", false, "print what would be written, and exit")
	f.BoolVar(&o.offline, "offline", false, "do not use the network or start the service")
	f.DurationVar(&o.timeout, "timeout", 2*time.Minute, "wait this long for the assignment\n(0: do not wait)")
	for _, flag := range []string{"id-scope", "registration-id", "endpoint", "timeout"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions) // fails only for a flag that does not exist
	}
	for _, flag := range []string{"key-file", "group-key-file", "certificate", "private-key"} {
		_ = cmd.MarkFlagFilename(flag)
	}
	_ = cmd.MarkFlagFilename("settings", "toml")
	cmd.MarkFlagsMutuallyExclusive("key-file", "group-key-file", "certificate")
	return cmd
}

// installer sets up a gateway.
type installer struct {
	initOptions
	file     string
	place    *setup.Place
	previous *setup.Previous
	extra    setup.Extra
	screen   *terminal // standard error: questions, progress and notes
	console  *console  // nil without a terminal
}

// setUp runs "dpsd init".
func setUp(ctx context.Context, file string, o initOptions) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return failed(err)
	}
	i := &installer{initOptions: o, file: file, screen: terminalOn(os.Stderr)}
	i.place = setup.PlaceFor(file, setup.Machine{UID: os.Geteuid(), Group: groupID, Writable: writable})
	if terminalOn(os.Stdin).attended && i.screen.attended {
		i.console = newConsole(ctx, os.Stdin, i.screen)
		defer func() { _ = i.console.show() }()
	}
	if err := i.existing(); err != nil {
		return err
	}
	answers, err := i.given()
	if err != nil {
		return err
	}
	asked := false
	if missing := i.missing(answers); missing != "" {
		if i.console == nil {
			return &exitError{exitUsage, errors.New("there is no terminal to ask on; missing: " + missing), "dpsd init --help"}
		}
		asked = true
		d := &setup.Dialogue{Console: i.console, Given: answers, Previous: i.previous, Identities: setup.Identities("/", attest.Host{}), Now: time.Now()}
		if answers, err = d.Ask(); err != nil {
			return failed(err)
		}
	}
	answers = i.previous.Complete(answers)
	if answers.Credential == nil && !i.previous.Keeps(answers.RegistrationID) {
		return &exitError{exitUsage, fmt.Errorf("the current key does not belong to the Registration ID %s", answers.RegistrationID), "dpsd init --replace --key-file FILE"}
	}
	files, err := i.place.Files(answers, i.previous, i.extra)
	if err != nil {
		return &exitError{exitConfiguration, err, ""}
	}
	if err := i.write(ctx, files, asked); err != nil || i.dryRun {
		return err
	}
	return i.finish(ctx)
}

// asRoot adds the command to try as root to an error, if this user lacks a permission.
func asRoot(err error, file, command string) error {
	if exit, is := errors.AsType[*exitError](err); is && errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		exit.next = check.With(file, "sudo dpsd "+command)
	}
	return err
}

// groupID returns the ID of a group of this machine.
func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// writable reports whether this user may write to a directory, or may create it.
func writable(directory string) bool {
	for {
		err := unix.Access(directory, unix.W_OK)
		if !errors.Is(err, fs.ErrNotExist) {
			return err == nil
		}
		directory = filepath.Dir(directory)
	}
}

// existing reads the existing configuration and the additional settings.
func (i *installer) existing() (err error) {
	if i.settings != "" {
		if i.extra, err = setup.ReadExtra(i.settings); errors.As(err, new(config.Errors)) {
			return &exitError{exitConfiguration, err, ""}
		} else if err != nil {
			return failed(err)
		}
	}
	if _, err := os.Lstat(i.file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !i.replace {
		return &exitError{exitFailed, fmt.Errorf("%s exists; dpsd init changes it only with --replace, which keeps the other settings and a copy of the file", i.file),
			check.With(i.file, "dpsd init --replace")}
	}
	if i.previous, err = i.place.Previous(); errors.As(err, &config.Errors{}) {
		fmt.Fprintf(i.screen, "The existing configuration is invalid, so its settings are not kept: %s\n", printable(oneLine(err.Error())))
		return nil
	}
	return failed(err)
}

// given returns the answers that the flags contain.
func (i *installer) given() (a setup.Answers, err error) {
	usage := func(flag string, err error) error {
		return &exitError{exitUsage, fmt.Errorf("--%s: %w", flag, err), ""}
	}
	a.Endpoint = i.endpoint
	if i.endpoint != "" {
		if wrong := config.Check("dps.endpoint", i.endpoint); wrong != nil {
			return a, usage("endpoint", errors.New(wrong.Problem))
		}
	}
	if i.idScope != "" {
		if a.IDScope, err = setup.ParseIDScope(i.idScope); err != nil {
			return a, usage("id-scope", err)
		}
		if doubt := setup.DoubtIDScope(a.IDScope); doubt != "" {
			fmt.Fprintln(i.screen, "dpsd: warning:", doubt)
		}
	}
	if id := i.registrationID; id != "" {
		if strings.Contains(id, "%") {
			if id, err = expanded(id); err != nil {
				return a, usage("registration-id", err)
			}
		}
		id, note, err := setup.ParseRegistrationID(id)
		if err != nil {
			return a, usage("registration-id", err)
		}
		a.RegistrationID = id
		i.note(note)
	}
	switch {
	case i.certificate != "":
		return i.certified(a)
	case i.privateKey != "":
		return a, usage("private-key", errors.New("requires --certificate"))
	case i.keyFile != "":
		key, err := readSymmetricKey("init", i.keyFile, i.note)
		if err != nil {
			return a, failed(fmt.Errorf("--key-file: %w", err))
		}
		a.Credential = &setup.Credential{Key: key}
	case i.groupKeyFile != "":
		key, err := readSymmetricKey("init", i.groupKeyFile, i.note)
		if err != nil {
			return a, failed(fmt.Errorf("--group-key-file: %w", err))
		}
		if !setup.Group(key) {
			i.note("dpsd: warning: the key has 44 characters, like a derived key; use --key-file for a derived key")
		}
		a.Credential = &setup.Credential{GroupKey: key}
	}
	return a, nil
}

// expanded returns the registration ID of a template on the command line.
func expanded(template string) (string, error) {
	id, err := attest.RegistrationID{Template: template}.Resolve(attest.Host{}, attest.Secrets{})
	if err != nil {
		return "", errors.Unwrap(err) // without the key of dpsd.toml
	}
	return id, nil
}

// note prints a note, unless it is "".
func (i *installer) note(text string) {
	if text != "" {
		fmt.Fprintln(i.screen, printable(text))
	}
}

// readSymmetricKey reads a key for a command from a file, or from standard input if the name is
// "-".
func readSymmetricKey(command, name string, tell func(note string)) (key []byte, err error) {
	note := ""
	if name != "-" {
		key, note, err = setup.ReadKey(name)
		tell(note)
		return key, err
	}
	if terminalOn(os.Stdin).attended {
		return nil, errors.New("standard input is a terminal, which would display the key; omit this flag, and dpsd " + command + " asks for the key without displaying it")
	}
	text, err := io.ReadAll(io.LimitReader(os.Stdin, maxKeyText))
	defer clear(text)
	if err == nil {
		key, note, err = setup.ParseKey(text, "standard input")
	}
	tell(note)
	return key, err
}

// certified adds the certificate to the answers.
func (i *installer) certified(a setup.Answers) (setup.Answers, error) {
	key := i.privateKey
	if key == "" {
		key = i.certificate
	}
	c, id, doubt, err := setup.ReadCertificate(absolute(i.certificate), absolute(key), a.RegistrationID, time.Now())
	if err != nil {
		return a, failed(err)
	}
	if doubt != nil {
		fmt.Fprintln(i.screen, "dpsd: warning:", printable(doubt.Error()))
	}
	a.Credential, a.RegistrationID = c, id
	return a, nil
}

// missing returns the flags of the missing answers, or "" if none is missing. With a previous
// configuration, its values complete the answers, unless a person can answer and no flag contains
// an answer.
func (i *installer) missing(a setup.Answers) string {
	if i.previous != nil && (i.console == nil || a.IDScope != "" || a.RegistrationID != "" || a.Credential != nil) {
		return ""
	}
	var all []string
	if a.IDScope == "" {
		all = append(all, "--id-scope")
	}
	if a.RegistrationID == "" && (a.Credential == nil || a.Credential.Certificates == nil) {
		all = append(all, "--registration-id")
	}
	if a.Credential == nil {
		all = append(all, "--key-file, --group-key-file or --certificate")
	}
	return strings.Join(all, ", ")
}

// write shows the files and asks for confirmation if the user has answered questions, and then
// writes the files.
func (i *installer) write(ctx context.Context, files []setup.File, asked bool) error {
	out := io.Writer(i.screen)
	if i.dryRun {
		out = os.Stdout
	}
	if i.dryRun || asked {
		if err := i.show(out, files); err != nil || i.dryRun {
			return failed(err)
		}
		yes, err := (&setup.Dialogue{Console: i.console}).Confirm("Write these files?", true)
		if err != nil {
			return failed(err)
		}
		if !yes {
			return failed(errStopped)
		}
	} else {
		i.note(i.place.Note)
	}
	copies, err := setup.Write(ctx, files, i.replace)
	if err != nil {
		next := ""
		if errors.As(err, new(*setup.ExistsError)) {
			next = check.With(i.file, "dpsd init --replace")
		}
		return &exitError{exitFailed, fmt.Errorf("%w; nothing was changed", err), next}
	}
	for _, f := range files {
		fmt.Printf("wrote %s\n", printable(f.Path))
	}
	for _, c := range copies {
		fmt.Printf("kept the previous file as %s\n", printable(c))
	}
	return nil
}

// show prints the files. It does not print secrets.
func (i *installer) show(out io.Writer, files []setup.File) error {
	var b strings.Builder
	for _, f := range files {
		owner := "only this user can read it"
		switch {
		case f.Mode&0o004 != 0:
			owner = "every user can read it"
		case f.Group >= 0:
			owner = "only root and the service can read it"
		}
		fmt.Fprintf(&b, "\n%s (mode %04o: %s)\n", printable(f.Path), f.Mode, owner)
		if f.Secret {
			b.WriteString("   not shown, because it is secret\n")
			continue
		}
		for line := range strings.Lines(string(f.Text)) {
			b.WriteString("   " + strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	if i.place.Note != "" {
		b.WriteString("\n" + i.place.Note + "\n")
	}
	_, err := fmt.Fprintln(out, b.String())
	return err
}
