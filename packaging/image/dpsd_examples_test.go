package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// mounts are what an example mounts in the container of dpsd: whether it is read-only, by the
// path. A file system in memory has the value memory.
type mounts map[string]string

const (
	readOnly  = "ro"
	writable  = "rw"
	inMemory  = "memory"
	machineID = "/etc/machine-id"
)

// starts starts dpsd with these mounts and no others, until it is healthy.
func (m mounts) starts(t *testing.T) {
	t.Helper()
	g := newGateway(t)
	sources := g.place.volumes
	sources["/run/dpsd"] = volumeOf(t, "dpsd", "run/dpsd")
	sources[machineID] = filepath.Join(t.TempDir(), "machine-id")
	if err := os.WriteFile(sources[machineID], []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hosts := sources["/etc/hosts"]
	g.place.volumes, g.place.readOnly, g.place.tmpfs = map[string]string{"/etc/hosts": hosts}, []string{"/etc/hosts"}, nil
	for path, kind := range m {
		switch kind {
		case inMemory:
			g.place.tmpfs = append(g.place.tmpfs, path)
			continue
		case readOnly:
			g.place.readOnly = append(g.place.readOnly, path)
		}
		if g.place.volumes[path] = sources[path]; sources[path] == "" {
			t.Fatalf("the example mounts %s, which dpsd does not need", path)
		}
	}
	// Without a secret, the key is a file that only the group of dpsd can read, as docs/containers.md
	// describes it.
	if m["/run/secrets"] == "" {
		etc, key := sources["/etc/dpsd"], filepath.Join(t.TempDir(), "device.key")
		text, err := os.ReadFile(etc + "/dpsd.toml")
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.ReplaceAll(string(text), "credential:dps-primary-key", "file:/etc/dpsd/keys/device.key")
		if err := os.WriteFile(etc+"/dpsd.toml", []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, "cp", sources["/run/secrets"]+"/dps-primary-key", key)
		run(t, "install", "-d", "-g", "65532", "-m", "0750", etc+"/keys")
		run(t, "install", "-m", "0440", "-g", "65532", key, etc+"/keys/device.key")
	}
	g.start(t, g.place).awaitReady(t, healthCheckOf(t, "dpsd"))
}

func access(isReadOnly bool) string {
	if isReadOnly {
		return readOnly
	}
	return writable
}

func TestTheComposeExampleOfDpsdBecomesHealthy(t *testing.T) {
	t.Parallel()
	options, err := cli.NewProjectOptions([]string{"examples/dpsd.compose.yaml"}, cli.WithName("example"), cli.WithEnv([]string{"DPSD=dpsd:1.0.0"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dpsd, consumer := project.Services["dpsd"], project.Services["consumer"]
	if dpsd.Image != "dpsd:1.0.0" || !dpsd.ReadOnly || !slices.Equal(dpsd.CapDrop, []string{"ALL"}) || len(dpsd.Command) > 0 {
		t.Errorf("the container of this test differs from that of the example: %+v", dpsd)
	}
	m := mounts{}
	for _, v := range dpsd.Volumes {
		m[v.Target] = access(v.ReadOnly)
	}
	for _, text := range dpsd.Tmpfs {
		path, options, _ := strings.Cut(text, ":")
		if options != "mode=0755,uid=65532,gid=65532" {
			t.Errorf("the options of %s are %s", path, options)
		}
		m[path] = inMemory
	}
	for _, secret := range dpsd.Secrets {
		if secret.Source != "dps-primary-key" {
			t.Errorf("the secret is %s", secret.Source)
		}
		m["/run/secrets"] = readOnly
	}
	if len(consumer.Volumes) != 1 || !consumer.Volumes[0].ReadOnly || consumer.DependsOn["dpsd"].Condition != types.ServiceConditionHealthy {
		t.Errorf("the consumer is %+v", consumer)
	}
	m.starts(t)
}

// Podman is not needed: the test reads the Quadlet as podman-systemd.unit(5) describes it.
func TestTheQuadletBecomesHealthyAndREADYReachesSystemd(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("examples/dpsd.container")
	if err != nil {
		t.Fatal(err)
	}
	settings, section := map[string][]string{}, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if name, is := strings.CutPrefix(line, "["); is {
			section = strings.TrimSuffix(name, "]")
			continue
		}
		if key, value, found := strings.Cut(line, "="); found && !strings.HasPrefix(line, "#") {
			settings[section+"."+key] = append(settings[section+"."+key], value)
		}
	}
	for key, want := range map[string]string{
		"Container.ReadOnly": "true", "Container.DropCapability": "all", "Container.NoNewPrivileges": "true", "Container.Notify": "true",
		"Container.Secret": "dps-primary-key", "Service.TimeoutStartSec": "infinity", "Service.RestartPreventExitStatus": "78", "Unit.DefaultDependencies": "no",
	} {
		if got := settings[key]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	m := mounts{"/run/secrets": readOnly}
	for _, volume := range settings["Container.Volume"] {
		parts := strings.Split(volume, ":")
		m[parts[1]] = access(len(parts) > 2 && parts[2] == "ro")
	}
	m.starts(t)
}

// The types of Kubernetes refuse unknown fields.
func TestTheDaemonSetBecomesHealthyAndSharesTheStateReadOnly(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("examples/dpsd.daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	documents := regexp.MustCompile(`(?m)^---\n`).Split(string(text), -1)
	if len(documents) != 2 {
		t.Fatalf("%d documents", len(documents))
	}
	var set appsv1.DaemonSet
	if err := yaml.UnmarshalStrict([]byte(documents[0]), &set); err != nil {
		t.Fatal(err)
	}
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	if s := c.SecurityContext; !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || *pod.SecurityContext.RunAsUser != 65532 || !*pod.SecurityContext.RunAsNonRoot {
		t.Errorf("the container of this test differs from that of the example: %+v", s)
	}
	if got, want := c.ReadinessProbe.Exec.Command, healthCheckOf(t, "dpsd"); got[0] != filepath.Base(want[0]) || !slices.Equal(got[1:], want[1:]) || c.LivenessProbe != nil {
		t.Errorf("the probes are %v and %v", c.ReadinessProbe, c.LivenessProbe)
	}
	if set.Spec.Selector.MatchLabels["app"] != set.Spec.Template.Labels["app"] {
		t.Error("the selector does not match the labels")
	}
	kinds := map[string]string{}
	for _, v := range pod.Volumes {
		if v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory {
			kinds[v.Name] = inMemory
		}
	}
	m := mounts{}
	for _, v := range c.VolumeMounts {
		if m[v.MountPath] = access(v.ReadOnly); kinds[v.Name] != "" {
			m[v.MountPath] = kinds[v.Name]
		}
	}
	m.starts(t)

	var consumer corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(documents[1]), &consumer); err != nil {
		t.Fatal(err)
	}
	for _, c := range append(consumer.Spec.InitContainers, consumer.Spec.Containers...) {
		if len(c.VolumeMounts) != 1 || c.VolumeMounts[0].MountPath != "/var/lib/dpsd" || !c.VolumeMounts[0].ReadOnly {
			t.Errorf("%s mounts %+v", c.Name, c.VolumeMounts)
		}
	}
}

// The command of docs/containers.md mounts what dpsd needs.
func TestTheDockerCommandOfThePageBecomesHealthy(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/containers.md")
	if err != nil {
		t.Fatal(err)
	}
	_, command, found := strings.Cut(string(page), "docker run ")
	command, _, ended := strings.Cut(command, " dpsd:TAG\n")
	if !found || !ended {
		t.Fatal("there is no docker run")
	}
	words := strings.Fields(strings.ReplaceAll(command, "\\\n", " "))
	m, flags := mounts{}, []string{}
	for i := 0; i < len(words); i++ {
		switch words[i] {
		case "--volume":
			i++
			parts := strings.Split(strings.Trim(words[i], `"`), ":")
			path := strings.TrimSuffix(parts[1], "/dps-primary-key")
			m[path] = access(len(parts) > 2 && parts[2] == "ro")
		case "--tmpfs":
			i++
			path, _, _ := strings.Cut(words[i], ":")
			m[path] = inMemory
		default:
			flags = append(flags, words[i])
		}
	}
	if want := strings.Fields("--detach --name dpsd --restart unless-stopped --read-only --cap-drop ALL"); !slices.Equal(flags, want) {
		t.Errorf("the flags are %q, want %q", flags, want)
	}
	m.starts(t)
}
