# Start with `make demo` and `make test`, which require only Go, make and git. As root
# on Debian, each target installs the other tools that it uses; otherwise it names the
# missing tools and skips what they are for. In CI, a missing tool is a failure.

GOLANGCI = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GREMLINS = github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0

# The only source of the version and its time is the top entry in CHANGELOG.md.
VERSION := $(shell packaging/version)
BUILT   := $(shell packaging/version time)
ifeq ($(VERSION),)
$(error packaging/version failed; see above)
endif
LDFLAGS  = -s -w -buildid= -X main.version=$(VERSION) -X main.built=$(BUILT)

# dpsd does not use HTTP/2: WebSocket, proxies and the control socket use HTTP/1.1.
# Without HTTP/2, the program is half a megabyte smaller.
TAGS = nethttpomithttp2
# Without inlining, the program needs 1 MB less on disk and in memory, and a run takes one
# millisecond more CPU time. Cryptography without assembly would take three times as long:
# go test -tags purego -gcflags=all=-l -bench P256 crypto/ecdsa.
# The arithmetic of P-384 has no assembly at all; inlining in it costs no space, and saves
# 2 ms for an issued certificate.
GCFLAGS = -gcflags=all=-l -gcflags=crypto/internal/fips140/nistec/fiat=
ifneq ($(filter arm riscv64,$(shell go env GOARCH)),)
GCFLAGS += -gcflags=crypto/...=
endif

# With VCS stamping, Go fails in a clone that belongs to another user, because git
# refuses to read it. LDFLAGS sets the version.
export GOFLAGS := $(shell go env GOFLAGS) -buildvcs=false

# The packages of this tree, and the same ones with a lower version.
ARCH     := $(shell dpkg --print-architecture 2>/dev/null)
CURRENT   = bin/system/current/dpsd_$(VERSION)_$(ARCH).deb
PREVIOUS  = bin/system/previous/dpsd_$(VERSION)~prev_$(ARCH).deb

# "make release repository publish" runs them in this order, also with -j.
.NOTPARALLEL:

.PHONY: build signer demo man operations test test-clients test-faults test-clock test-tpm-machine lint mutants fuzz bench benches compare fleet fleet-check soak deb test-deb image test-image test-bare test-tpm test-recipes test-pkcs11 release release-key repository publish test-release test-newcomer test-system test-browser always clean

# -v shows the progress: the first build also compiles the standard library.
BIN = bin
PROGRAMS = ./cmd/dpsd ./cmd/dpsd-sim
build:
	@[ -e '$(BIN)/dpsd' ] || echo 'Building dpsd and dpsd-sim. The first build takes about a minute.'
	CGO_ENABLED=0 go build -v -tags $(TAGS) -trimpath $(GCFLAGS) -ldflags '$(LDFLAGS)' -o '$(BIN)/' $(PROGRAMS)

# The signer for PKCS#11 tokens needs a C compiler, and is not static. Debian also links its
# programs as PIE and with "-z now".
signer:
	CGO_ENABLED=1 go build -C pkcs11 -tags netgo,osusergo -buildmode=pie -trimpath -ldflags '$(LDFLAGS) -linkmode=external -extldflags=-Wl,-z,now' \
	  -o '$(abspath $(BIN))/' ./dpsd-signer-pkcs11

demo: build
	bin/dpsd-sim demo

# The manual pages and the other generated files. The tests compare them with their sources.
man:
	go test -run 'Manual|Catalogue' ./fault ./journal ./config ./store ./cmd/dpsd ./cmd/dpsd-sim -update

# The generated parts of docs/operations.md: transcripts of the programs, and the metrics.
operations:
	.ci/need test
	go test ./test/operations ./daemon -run '^TestThePage' -update

# These tests take too long with the race detector: those that call long(t). The packages
# fleet and bench/fleet, which have one goroutine, are also tested without it, at the same time.
LONG  = TestTheJournalOfADayIsBounded|TestPromise5FailuresNeverEndTheProcess|TestADayOfRandomFaultsKeepsTheFloorAndTheBudget|TestEachFaultIsReportedAndRecoveredFrom
LONG := $(LONG)|TestForFiveYearsTheCertificateIsValidOrRestoredAutomatically|TestAnExpiredCertificateIsRestoredWhenTheServiceReturns|TestABootWithAValidCertificateRequestsNone|TestAGatewayIsAssignedAlthoughDPSFailsOnCertificateRequests|TestKilledAtEachStep|TestPromise2TheStateFileIsAlwaysWhole|TestKilledAtEachCall|TestEachCallRefused|TestPowerCutAtEachCall|TestForgetInterrupted
LONG := $(LONG)|TestARenewalKilledAtEachStep|TestARenewalKilledAtEachCall|TestEachCallOfARenewalRefused|TestPowerCutAtEachCallOfARenewal
LONG := $(LONG)|TestOnceWithoutATimeoutWaitsForAFileForever|TestADeviceClientWithQueuedMessagesStaysConnectedThrough1000Checks
# Twice as many packages in parallel as there are processors, and in each of them four times as
# many tests, because some tests mostly wait.
test:
	.ci/need test
	@echo 'Vetting and testing all packages. With two processors, this takes two to five minutes, and four to six the first time.'
	go vet -v ./...
	go vet -C bench -v ./...
	go test -vet=off $$(.ci/need race) -p $$((2 * $$(nproc))) -parallel $$((4 * $$(nproc))) -timeout 20m $$(go list ./... | grep -v '/dpsd/fleet$$')
	go test -C bench -vet=off $$(.ci/need race) $$(go list -C bench ./... | grep -v '/fleet$$')
	{ go test -vet=off ./fleet && go test -C bench -vet=off ./fleet; } & fleet=$$!; \
	  if [ -n "$$(.ci/need race)" ]; then \
	    go test -vet=off -run '^($(LONG))$$' ./daemon ./store; \
	  fi; \
	  status=$$?; wait $$fleet && exit $$status

# The simulator with the clients that people use: Microsoft's SDKs, MQTT.js, Paho, mosquitto and
# others, and the recipes of docs/simulator.md, which begin with the package. The clients are
# installed from their registries. Takes two to four minutes.
test-clients: $(CURRENT)
	.ci/need clients
	DPSD_CLIENTS=1 DPSD_SIM_DEB="$$(echo '$(CURDIR)'/$(<D)/dpsd-sim_*_$(ARCH).deb)" go test -count=1 -timeout 20m -parallel 16 -v ./test/clients
	DPSD_SDKS=1 go test -count=1 -v -run '^Test(Node|Python)SDK$$' ./cmd/dpsd-sim

lint: .bin/golangci-lint
	.bin/golangci-lint run ./...
	cd bench && ../.bin/golangci-lint run ./...
	cd packaging/image && ../../.bin/golangci-lint run ./...
	if command -v cc >/dev/null; then cd pkcs11 && ../.bin/golangci-lint run ./...; fi
	cd packaging/release && ../../.bin/golangci-lint run ./...
	cd test/browser && ../../.bin/golangci-lint run ./...

.bin/golangci-lint: Makefile
	GOBIN=$(CURDIR)/.bin go install $(GOLANGCI)
	touch $@

# Mutation tests: gremlins makes one change to a package at a time, and one of the
# package's own tests must fail. It prints the changes that no test detects, and fails
# below the limits in .gremlins.yaml. MUTANTS='pace dps' selects packages.
MUTANTS ?= pace dps attest mqttv3 classify redact store
EXCLUDED_store = -E '^testdata/' $(patsubst store/%,-E '^%$$',$(filter-out store/record.go %_test.go,$(wildcard store/*.go)))
mutants: .bin/gremlins
	@$(foreach package,$(MUTANTS),echo '== $(package)'; .bin/gremlins unleash $(EXCLUDED_$(package)) ./$(package) || failed=1;) \
	  [ -z "$$failed" ]

.bin/gremlins: Makefile
	GOBIN=$(CURDIR)/.bin go install $(GREMLINS)
	touch $@

# Runs each fuzz target for a short time; FUZZTIME=10m for a longer one.
FUZZTIME ?= 20s
fuzz:
	@for dir in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do \
	  for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6-); do \
	    echo "== $$dir $$target"; go test -C $$dir . -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x || exit 1; \
	  done; \
	done

# How a gateway reacts to every fault, row by row, and to a peer that stalls at any
# byte of a session. Takes minutes.
test-faults:
	@mkdir -p bin
	@go test -count=1 -v -run '^TestEachFaultIsReportedAndRecoveredFrom$$' ./daemon/ >bin/faults.txt 2>&1; status=$$?; \
	  grep -v '^ *\(===\|--- PASS\)' bin/faults.txt; exit $$status
	DPSD_STALL=every-byte go test -count=1 -run '^TestPromise6NothingHangs$$' ./daemon/

# dpsd as a service in a QEMU machine that boots with a wrong clock, which is then
# set. Takes a minute or two. The machine is built from Debian's packages once a week.
MACHINE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dpsd/machine
test-clock: build
	timeout 300 test/qemu/machine '$(MACHINE)'
	DPSD_MACHINE='$(MACHINE)' timeout 600 go test -count=1 -v ./test/qemu/

# The package in a QEMU machine with Debian 12 or 13 and a TPM, as root. Takes two to four minutes.
test-tpm-machine: $(CURRENT)
	.ci/need tpm-machine
	timeout 900 test/system/roots '$(ROOTS)' machine
	DPSD_ROOTS='$(ROOTS)' DPSD_DEB='$(abspath $(CURRENT))' timeout 900 go test -count=1 -timeout 15m -v ./test/qemu/

# Compares the cost of a registration with the budgets, and measures the capacity of one
# simulator. BENCHFLAGS='-document docs/performance.md' writes the first tables to the
# page, LOADFLAGS the second; BENCHFLAGS=-short takes one minute instead of eleven.
bench: build benches
	bin/bench/bench $(BENCHFLAGS)
	bin/bench/load $(LOADFLAGS)

# A separate module, so that its dependencies are not dpsd's. The programs run in this directory.
benches:
	go build -C bench -o '$(CURDIR)/bin/bench/' ./...

# Installs Microsoft's SDKs for Node and Python, and compares dpsd with them, in ten
# minutes. Writes table and plot to the page; COMPAREFLAGS= only prints the table.
COMPAREFLAGS ?= -document docs/performance.md
compare: build benches
	.ci/need compare
	bin/bench/bench -compare $(COMPAREFLAGS)

# Simulates the load of ten thousand gateways on the service, in virtual time: the runs
# that determined the default delays. FLEETFLAGS='-document docs/performance.md' writes
# tables and plots to the page; -large also simulates a million gateways.
fleet: benches
	bin/bench/fleet $(FLEETFLAGS)

# Compares the simulated fleet with 200 real processes and the real simulator, in two minutes.
fleet-check:
	DPSD_FLEET=200 go test -count=1 -v ./test/fleet/

# Runs the built dpsd for an hour of real time against a service with random faults, and
# compares its resources at the start and at the end. SOAK=2m for a short run.
SOAK ?= 60m
soak: build benches
	bin/bench/soak -for $(SOAK)

# Builds the Debian packages, with checksums and a bill of materials for each, in DIST,
# for ARCHS, with VERSION. See packaging/deb/README.md.
ARCHS ?= amd64 arm64 armhf riscv64
DIST  ?= dist
deb:
	.ci/need deb $(ARCHS)
	packaging/deb/build '$(VERSION)' '$(DIST)' $(ARCHS)

# Debian's checkers, images, other architectures, and a second build, which must be
# identical. ROOTS has the root file systems of Debian 12 and 13, built once a week.
ROOTS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dpsd/roots
test-deb: deb
	.ci/need test-deb
	timeout 600 test/system/roots '$(ROOTS)'
	DPSD_DIST='$(abspath $(DIST))' DPSD_VERSION='$(VERSION)' DPSD_ROOTS='$(ROOTS)' timeout 1200 go test -count=1 -v ./test/deb/

# Builds the container images of dpsd and dpsd-sim in DIST, for ARCHS, without a container engine.
# See packaging/image/README.md.
image:
	packaging/image/build '$(VERSION)' '$(DIST)' $(ARCHS)

# Runs the images with runc, registers dpsd with the simulator, checks the examples, and builds
# the images again, which must be identical.
test-image: build image
	.ci/need test-image
	DPSD_DIST='$(abspath $(DIST))' DPSD_VERSION='$(VERSION)' DPSD_BIN='$(abspath $(BIN))' timeout 600 go test -C packaging/image -count=1 -v ./...

# Builds all files of a release in DIST, for ARCHS, with VERSION: packages, archives, images, bills
# of materials, checksums, provenance and notes. KEY is the file of the secret key that signs
# them, and NEXT_KEY the file of the key that will replace it. See docs/release.md.
KEY ?= $(error set KEY to the file of the secret key; make release-key KEY=FILE creates one)
release:
	.ci/need release $(ARCHS)
	NEXT_KEY='$(NEXT_KEY)' packaging/release/build '$(VERSION)' '$(DIST)' '$(KEY)' $(ARCHS)

# Creates a secret key in the file KEY.
release-key:
	GOFLAGS=-buildvcs=false go run -C packaging/release . key -key '$(abspath $(KEY))'

# Adds the packages in DIST to the package repositories in REPOSITORY, which clients will find
# at URL.
REPOSITORY ?= repository
URL        ?= https://dpsd-project.github.io/dpsd
repository:
	@case '$(VERSION)' in *~* | *+*) echo 'repository: $(VERSION) is not a release, and every gateway would install it; for a release candidate, run make release publish' >&2; exit 1 ;; esac
	.ci/need release
	GOFLAGS=-buildvcs=false go run -C packaging/release . repository -time '$(BUILT)' -dist '$(abspath $(DIST))' \
	  -repository '$(abspath $(REPOSITORY))' -url '$(URL)' -key '$(abspath $(KEY))' -next-key '$(abspath $(NEXT_KEY))'

# Copies the release in DIST and the repositories in REPOSITORY to TO: a directory, HOST:DIRECTORY,
# or rclone:REMOTE:PATH.
publish:
	packaging/release/publish '$(VERSION)' '$(DIST)' '$(REPOSITORY)' '$(TO)'

# Builds a release with a new key, builds it again, which must give the same bytes, and installs it
# with apt, with dnf and from the archive, in Debian 12 and 13 and Ubuntu 24.04 booted by
# systemd-nspawn. Needs root.
# ARCHS=amd64 saves most of the time.
RELEASE = bin/system/release
test-release: build
	.ci/need release $(ARCHS)
	.ci/need test-release
	timeout 900 test/system/roots '$(ROOTS)'
	timeout 600 test/system/roots '$(ROOTS)' release
	rm -rf $(RELEASE) && mkdir -p $(RELEASE)
	packaging/release/compile $(RELEASE)/release
	for key in key foreign-key; do $(RELEASE)/release key -key $(RELEASE)/$$key; done
	packaging/release/build '$(VERSION)' '$(RELEASE)/dist' '$(RELEASE)/key' $(ARCHS)
	go vet -C packaging/release ./...
	DPSD_RELEASE='$(CURDIR)/$(RELEASE)' DPSD_VERSION='$(VERSION)' DPSD_ARCHS='$(ARCHS)' timeout 900 go test -C packaging/release -count=1 -timeout 15m -v ./...
	DPSD_RELEASE='$(CURDIR)/$(RELEASE)' DPSD_VERSION='$(VERSION)' DPSD_ROOTS='$(ROOTS)' timeout 900 \
	  go test -count=1 -parallel 4 -v -run 'Release' $(TESTFLAGS) ./test/system/

# Tests the source archive, and the Yocto and Buildroot recipes that build from it. oelint-adv is
# installed from its registry.
OELINT = oelint-adv==9.11.2
test-recipes:
	.ci/need recipes
	@if python3 -c 'import venv, ensurepip' 2>/dev/null && ! [ -x bin/oelint/bin/oelint-adv ]; then \
	  python3 -m venv bin/oelint && bin/oelint/bin/pip install --quiet --disable-pip-version-check $(OELINT); \
	fi
	DPSD_RECIPES=1 DPSD_OELINT="$$(ls '$(CURDIR)/bin/oelint/bin/oelint-adv' 2>/dev/null)" timeout 600 go test -count=1 -v ./test/recipes/

# Tests dpsd without systemd: in namespaces with a read-only root, as an ordinary user and as
# process 1, and with OpenRC, runit, s6 and procd's script. TESTFLAGS='-run OpenRC' selects tests.
test-bare: build
	.ci/need test-bare
	timeout 600 test/bare/root '$(ROOTS)'
	DPSD_BARE=1 DPSD_BIN='$(abspath $(BIN))' DPSD_ROOTS='$(ROOTS)' timeout 600 go test -count=1 -v $(TESTFLAGS) ./test/bare/

# dpsd-signer-pkcs11 with the tokens of SoftHSM, and with a library that fails like real libraries.
test-pkcs11:
	.ci/need test-pkcs11
	if command -v cc >/dev/null; then go vet -C pkcs11 ./... && timeout 600 go test -C pkcs11 -race -count=1 -v $(TESTFLAGS) ./...; fi

# TPM keys with a software TPM and with OpenSSL. "make test" runs the same tests if the tools are installed.
test-tpm:
	.ci/need test-tpm
	timeout 600 go test $$(.ci/need race) -count=1 -v $(TESTFLAGS) ./tpm/... ./setup
	timeout 600 go test -count=1 -v -run 'TPM|Seal|SystemdCreds|TestScript/^tpm' ./cmd/dpsd ./attest

# "make demo" and "make test" on a new machine: as an ordinary user on a minimal
# Debian 13, and as root on a minimal Debian 12, in a fresh clone of the last commit.
test-newcomer:
	timeout 3600 test/newcomer/run '$(ROOTS)'

# The packages, installed in Debian 12 and 13 booted by systemd-nspawn, as root. The
# previous version is the same tree with a lower version number. TESTFLAGS='-run Upgrade'
# selects tests.
TESTFLAGS ?=
test-system: build
	timeout 900 test/system/roots '$(ROOTS)'
	if [ -e '$(ROOTS)/trixie.key' ]; then $(MAKE) $(CURRENT) $(PREVIOUS); fi
	CGO_ENABLED=0 go build -o bin/system/ ./test/system/consumer ./test/system/hold ./test/system/probe
	{ DPSD_ROOTS='$(ROOTS)' timeout 900 go test -count=1 -parallel 4 -v $(TESTFLAGS) ./test/system/; echo $$? >bin/system/status; } | \
	  grep -v '^=== '; exit $$(cat bin/system/status)

# The page of the simulator in a real browser: accessibility, keyboard, ten thousand devices.
# A separate module, so that its dependencies are not dpsd's. BROWSERFLAGS=-screenshots
# rewrites the screenshots of the documentation.
BROWSERFLAGS ?=
test-browser:
	.ci/need browser
	if command -v npm >/dev/null; then npm ci --prefix test/browser --no-audit --no-fund; fi
	go vet -C test/browser ./...
	@mkdir -p bin
	go test -C test/browser -count=1 -v $(BROWSERFLAGS) ./... >bin/browser.txt 2>&1; status=$$?; \
	  grep -v '^ *\(=== \|--- PASS: .*/\)' bin/browser.txt; exit $$status

# A version names a commit, so a dirty tree is always packaged again.
$(CURRENT) $(PREVIOUS): $(if $(findstring dirty,$(VERSION)),always)
	rm -rf $(@D)
	$(MAKE) deb ARCHS=$(ARCH) DIST=$(@D) VERSION='$(patsubst dpsd_%_$(ARCH).deb,%,$(@F))'
always:

clean:
	rm -rf bin dist
