package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"
)

// registered is what the program of the examples prints for MQTT and for WebSocket.
const registered = "assigned dpsd-sim.azure-devices.net gateway-1\nassigned dpsd-sim.azure-devices.net gateway-1\n"

// actionlint checks workflows. Its module requires another version of a module that
// compose-go uses.
const actionlint = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"

// parse reads a file of YAML.
func parse(t *testing.T, file string, to any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, to); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// python returns an environment with Microsoft's SDK, in the version of the examples, and with
// a validator for GitLab's schema.
var python = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(shared, "python")
	pip := []string{dir + "/bin/pip", "install", "--quiet", "--disable-pip-version-check"}
	return dir, commands([][]string{
		{"python3", "-m", "venv", dir},
		append(slices.Clip(pip), "--no-deps", "-r", "../../simulator/testdata/python/requirements.txt"),
		append(slices.Clip(pip), "check-jsonschema==0.39.0"),
	})
})

// programs returns a directory of programs, Python's environment.
func programs(t *testing.T) string {
	t.Helper()
	need(t, true, "python3", "bash", "openssl", "socat")
	dir, err := python()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "bin")
}

// script runs a script of an example on the client's host, in a directory, and returns its
// output.
func (l *lab) script(t *testing.T, dir string, paths []string, variables map[string]string, command ...string) string {
	t.Helper()
	c := l.command(t, command...)
	c.Dir = dir
	c.Env = []string{"HOME=" + dir, "PIP_DISABLE_PIP_VERSION_CHECK=1", "PATH=" + strings.Join(append(paths, os.Getenv("PATH")), ":")}
	for name, value := range variables {
		c.Env = append(c.Env, name+"="+value)
	}
	return output(t, c)
}

// publish makes a port of the container a port of the client's host, given as HOST:CONTAINER.
func (l *lab) publish(t *testing.T, ports string) {
	t.Helper()
	host, inner, _ := strings.Cut(ports, ":")
	c := l.command(t, "socat", "TCP-LISTEN:"+host+",bind=127.0.0.1,fork,reuseaddr", "TCP:"+address+":"+inner)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Wait() }) // it ends with the context of the test
	output(t, l.command(t, "timeout", "30", "bash", "-c", "until (: </dev/tcp/127.0.0.1/"+host+") 2>/dev/null; do sleep 0.05; done"))
}

// examples returns a copy of the examples.
func examples(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("examples")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The file is loaded with the library of "docker compose". The simulator and the command that
// creates the credentials run in containers, and the device on another host.
func TestTheComposeExampleRegistersADevice(t *testing.T) {
	t.Parallel()
	built(t, simulator)
	options, err := cli.NewProjectOptions([]string{"examples/compose.yaml"}, cli.WithName("example"), cli.WithEnv([]string{"DPSD_SIM=dpsd-sim:1.0.0"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dps, credentials, gateway := project.Services["dps"], project.Services["credentials"], project.Services["gateway"]
	if dps.Image != "dpsd-sim:1.0.0" || credentials.Image != dps.Image || len(project.Services) != 3 {
		t.Fatalf("the services are %+v", project.Services)
	}
	if !dps.ReadOnly || !slices.Equal(dps.CapDrop, []string{"ALL"}) || !maps.Equal(dps.Sysctls, lowPorts) {
		t.Error("the container of this test differs from that of the example")
	}
	if credentials.DependsOn["dps"].Condition != types.ServiceConditionHealthy || gateway.DependsOn["credentials"].Condition != types.ServiceConditionCompletedSuccessfully {
		t.Errorf("the services start in another order than in this test: %+v, %+v", credentials.DependsOn, gateway.DependsOn)
	}
	sim := map[string]string{"sim": volume(t), project.WorkingDir: examples(t)}
	places := func(s types.ServiceConfig) map[string]string {
		all := map[string]string{}
		for _, v := range s.Volumes {
			if all[v.Target] = sim[v.Source]; all[v.Target] == "" {
				t.Fatalf("%s: the volume %s is unknown", s.Name, v.Source)
			}
		}
		return all
	}

	l := newLab(t, dps.Networks["default"].Aliases...)
	c := l.start(t, place{volumes: places(dps), sysctls: dps.Sysctls}, dps.Command...)
	if dps.HealthCheck.Test[0] != "CMD" {
		t.Fatalf("the health check needs a shell: %v", dps.HealthCheck.Test)
	}
	c.awaitReady(t, dps.HealthCheck.Test[1:])
	created := l.start(t, place{volumes: places(credentials)}, credentials.Command...)
	if code := created.wait(t); code != 0 {
		t.Fatalf("exit code %d: %s", code, created.out.String())
	}
	var replace []string
	for target, source := range places(gateway) {
		replace = append(replace, target+"/", source+"/")
	}
	host := strings.NewReplacer(replace...)
	command := slices.Clone(gateway.Command)
	for i := range command {
		command[i] = host.Replace(strings.ReplaceAll(command[i], "$$", "$"))
	}
	variables := map[string]string{}
	for name, value := range gateway.Environment {
		variables[name] = host.Replace(*value)
	}
	if got := l.script(t, t.TempDir(), []string{programs(t)}, variables, command...); got != registered {
		t.Errorf("the device prints %q", got)
	}
}

// actionlint checks the workflow. Its steps run as on a runner, to which the ports of the service
// are published, with stand-ins for docker and sudo.
func TestTheGitHubActionsExampleRegistersADevice(t *testing.T) {
	t.Parallel()
	built(t, simulator)
	const file = "examples/github-actions.yml"
	run(t, "go", "run", actionlint, file)
	var workflow struct {
		Jobs struct {
			Register struct {
				Services struct {
					DPS struct{ Ports []string } `yaml:"dps"`
				}
				Env   map[string]string
				Steps []struct {
					Env map[string]string
					Run string // empty for the checkout
				}
			}
		}
	}
	parse(t, file, &workflow)
	job := workflow.Jobs.Register
	l := newLab(t)
	data, workspace, stand := volume(t), examples(t), t.TempDir()
	c := l.start(t, place{volumes: map[string]string{"/data": data}})
	c.awaitReady(t, healthCheck(t)) // a runner waits for it
	for _, ports := range job.Services.DPS.Ports {
		l.publish(t, ports)
	}
	for name, script := range map[string]string{
		"sudo": `exec "$@"`,
		"docker": `case "$1 $2" in
			"exec ` + c.id + `") shift 2; exec runc --root ` + c.state + ` exec ` + c.id + ` "$@" ;;
			"cp ` + c.id + `:/data") exec cp -R ` + data + ` "$3" ;;
			*) echo "docker $*" >&2; exit 1 ;;
			esac`,
	} {
		if err := os.WriteFile(filepath.Join(stand, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	last := ""
	for _, step := range job.Steps {
		if step.Run == "" {
			continue
		}
		variables := maps.Clone(job.Env)
		for name, value := range step.Env {
			variables[name] = strings.ReplaceAll(value, "${{ job.services.dps.id }}", c.id)
		}
		last = l.script(t, workspace, []string{stand, programs(t)}, variables, "bash", "-e", "-c", step.Run)
	}
	if last != registered {
		t.Errorf("the device prints %q", last)
	}
}

// The file is checked with GitLab's own schema. The service and the script share a directory, as
// they do with the Docker executor.
func TestTheGitLabExampleRegistersADevice(t *testing.T) {
	t.Parallel()
	built(t, simulator)
	const file, group = "examples/gitlab-ci.yml", "/builds/my-group"
	run(t, filepath.Join(programs(t), "check-jsonschema"), "--builtin-schema", "vendor.gitlab-ci", file)
	var pipeline struct {
		Register struct {
			Services []struct {
				Alias   string
				Command []string
			}
			Variables map[string]string
			Script    []string
		}
	}
	parse(t, file, &pipeline)
	job := pipeline.Register
	if len(job.Services) != 1 {
		t.Fatalf("%+v", job)
	}
	builds := t.TempDir()
	if err := os.Chmod(builds, 0o777); err != nil { // as the runner does
		t.Fatal(err)
	}
	l := newLab(t, strings.Split(job.Services[0].Alias, ",")...)
	c := l.start(t, place{volumes: map[string]string{group: builds}, sysctls: lowPorts}, job.Services[0].Command...)
	c.awaitReady(t, []string{"dpsd-sim", "ready", "--dir", group + "/dpsd-sim"})
	script := strings.ReplaceAll(strings.Join(job.Script, "\n"), group, builds)
	got := l.script(t, examples(t), []string{programs(t)}, job.Variables, "bash", "-e", "-c", script)
	if !strings.HasSuffix(got, registered) {
		t.Errorf("the device prints %q", got)
	}
}
