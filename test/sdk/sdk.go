// Package sdk installs Microsoft's device SDKs for Node, Python and Java, unchanged, with the small
// programs in simulator/testdata that use them to register devices. Tests and benchmarks use it;
// they install from the registries only on demand.
package sdk

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Limit is the time in which an SDK finishes, unless it hangs; the SDK for Node is known to hang
// sometimes.
const Limit = 2 * time.Minute

// SDK is one of the SDKs.
type SDK struct {
	Name    string
	files   string     // directory of simulator/testdata that is copied
	tools   []string   // required programs
	needs   [][]string // commands that succeed if the other requirements are installed
	install [][]string // commands to run in the copy
	// version prints the versions of interpreter and SDK, run in the copy.
	version []string
	command func(cases string, proxy int) []string
}

// Node is the SDK for Node.
func Node() SDK {
	return SDK{
		Name:    "Node",
		files:   "node",
		tools:   []string{"node", "npm"},
		install: [][]string{{"npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"}},
		version: []string{"node", "-p", `"Node " + process.version + ", azure-iot-provisioning-device " + require("azure-iot-provisioning-device/package.json").version`},
		command: func(cases string, _ int) []string {
			return []string{"sh", "-c", `NODE_EXTRA_CA_CERTS=$DPS_CA_FILE exec node register.js "$0"`, cases}
		},
	}
}

// Python is the SDK for Python.
func Python() SDK {
	return SDK{
		Name:  "Python",
		files: "python",
		tools: []string{"python3"},
		needs: [][]string{{"python3", "-c", "import venv, ensurepip"}},
		install: [][]string{
			{"python3", "-m", "venv", "venv"},
			{"venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", "requirements.txt"},
		},
		version: []string{"venv/bin/python", "-c", `import platform, importlib.metadata as m; print("Python", platform.python_version() + ", azure-iot-device", m.version("azure-iot-device"))`},
		command: func(cases string, proxy int) []string {
			return []string{"venv/bin/python", "register.py", cases, strconv.Itoa(proxy)}
		},
	}
}

// Java is the SDK for Java. It has no Command.
func Java() SDK {
	return SDK{
		Name:  "Java",
		files: "java",
		tools: []string{"javac", "mvn", "keytool"},
		install: [][]string{
			{"mvn", "--quiet", "--batch-mode", "dependency:copy-dependencies", "-DoutputDirectory=lib"},
			{"javac", "-cp", "lib/*", "Device.java"},
		},
		version: []string{"sh", "-c", `java -version 2>&1 | sed -n 1p; ls lib | grep '^provisioning-device-client'`},
	}
}

// Missing returns what the SDK needs but the machine does not have, or "".
func (k SDK) Missing() string {
	for _, tool := range k.tools {
		if _, err := exec.LookPath(tool); err != nil {
			return tool
		}
	}
	for _, c := range k.needs {
		if exec.Command(c[0], c[1:]...).Run() != nil { //nolint:gosec // of the list above
			return "what \"" + strings.Join(c, " ") + "\" asks for"
		}
	}
	return ""
}

// Install copies the program from the repository to dir, and installs the SDK in it.
func (k SDK) Install(ctx context.Context, repository, dir string) error {
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(repository, "simulator/testdata", k.files))); err != nil {
		return err
	}
	for _, c := range k.install {
		command := exec.CommandContext(ctx, c[0], c[1:]...) //nolint:gosec // of the list above
		command.Dir = dir
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", c, err, out)
		}
	}
	return nil
}

// Version returns the versions of the interpreter and the SDK that are installed in dir.
func (k SDK) Version(dir string) (string, error) {
	command := exec.Command(k.version[0], k.version[1:]...) //nolint:gosec // of the list above
	command.Dir = dir
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("%v: %w", k.version, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Command returns a command that registers the devices of a file, a JSON list of Case. It must
// run in the directory of the installation, with the environment of "dpsd-sim exec". It prints a
// Line for each device. proxy is the port of a Proxy, which Python's SDK needs.
func (k SDK) Command(cases string, proxy int) []string { return k.command(cases, proxy) }

// Case describes a device for the SDK.
type Case struct {
	RegistrationID  string         `json:"registrationId"`
	Protocol        string         `json:"protocol"` // "mqtt" or "websocket"
	Key             string         `json:"key,omitempty"`
	CertificateFile string         `json:"certificateFile,omitempty"`
	PrivateKeyFile  string         `json:"privateKeyFile,omitempty"`
	Payload         map[string]any `json:"payload,omitempty"`
}

// Line is the result of the SDK for a device: the assignment, or the error.
type Line struct {
	RegistrationID, Status, Hub, Device string
	Payload                             map[string]any
	Error, Message, Cause               string
}
