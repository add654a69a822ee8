# What a newcomer types is `make demo` and `make test`; Go, make and git are
# enough. Each target installs what else it needs when it may (root, Debian),
# and says what it leaves out when it may not. In CI leaving out is a failure.

GOLANGCI = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GREMLINS = github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0

# The version has one source: the git tags.
VERSION := $(shell packaging/version)
BUILT   := $(shell git -c safe.directory='*' log -1 --format=%ct 2>/dev/null || echo 0)
LDFLAGS  = -s -w -buildid= -X main.version=$(VERSION) -X main.built=$(BUILT)

# Nothing here speaks HTTP/2: WebSocket begins with HTTP/1.1, and so do proxies and
# the control socket. Without it the program is half a megabyte smaller.
TAGS = nethttpomithttp2
# dpsd's own packages are compiled as they are tested. The libraries are compiled without
# inlining, which saves 0.8 MB on disk and in memory and costs a millisecond of CPU in the
# life of the process. Cryptography that has no assembly would take three times as long:
# go test -tags purego -gcflags=all=-l -bench P256 crypto/ecdsa.
GCFLAGS = -gcflags=all=-l -gcflags=github.com/dpsd-project/dpsd/...=
ifneq ($(filter arm riscv64,$(shell go env GOARCH)),)
GCFLAGS += -gcflags=crypto/...=
endif

# With VCS stamping, Go fails in a clone that belongs to another user, because git
# refuses to read it. LDFLAGS sets the version.
export GOFLAGS := $(shell go env GOFLAGS) -buildvcs=false

.PHONY: build demo man operations test test-faults test-clock lint mutants fuzz bench benches compare fleet fleet-check soak deb test-deb test-newcomer test-system always clean

# Go names the packages that it compiles: the first time all of its library's, too.
BIN = bin
build:
	@[ -e '$(BIN)/dpsd' ] || echo 'Building dpsd and dpsd-sim. The first build takes about a minute.'
	CGO_ENABLED=0 go build -v -tags $(TAGS) -trimpath $(GCFLAGS) -ldflags '$(LDFLAGS)' -o '$(BIN)/' ./cmd/dpsd ./cmd/dpsd-sim

demo: build
	bin/dpsd-sim demo

# The manual pages and what else is made of the sources; the tests hold it to them.
man:
	go test -run 'Manual|Catalogue' ./fault ./journal ./config ./store ./cmd/dpsd ./cmd/dpsd-sim -update

# What docs/operations.md shows: transcripts of the built programs, and the metrics.
operations:
	.ci/need test
	go test ./test/operations ./daemon -run '^TestThePage' -update

# What is too long for the race detector: the tests that call long(t), and a package
# that is one goroutine.
LONG  = TestTheJournalOfADayIsBounded|TestPromise5FailuresNeverEndTheProcess|TestADayOfRandomFaultsKeepsTheFloorAndTheBudget|TestEachFaultIsReportedAndRecoveredFrom
LONG := $(LONG)|TestKilledAtEachStep|TestPromise2TheStateFileIsAlwaysWhole|TestKilledAtEachCall|TestEachCallRefused|TestPowerCutAtEachCall|TestForgetInterrupted
# Twice as many packages at a time as there are processors: some mostly wait.
test:
	.ci/need test
	@echo 'Vetting and testing every package. On two processors this takes one to three minutes, and two to four the first time.'
	go vet -v ./...
	go vet -C bench -v ./...
	go test $$(.ci/need race) -p $$((2 * $$(nproc))) -timeout 20m $$(go list ./... | grep -v '/dpsd/fleet$$')
	go test ./fleet
	go test -C bench $$(.ci/need race) ./...
	if [ -n "$$(.ci/need race)" ]; then go test -run '^($(LONG))$$' ./daemon ./store; fi

lint: .bin/golangci-lint
	.bin/golangci-lint run ./...
	cd bench && ../.bin/golangci-lint run ./...

.bin/golangci-lint: Makefile
	GOBIN=$(CURDIR)/.bin go install $(GOLANGCI)
	touch $@

# Mutation tests: gremlins changes one place of a package at a time, and one of the
# package's own tests has to fail. It prints the changes that no test noticed, and fails
# below the limits of .gremlins.yaml. MUTANTS='pace dps' for some packages.
MUTANTS ?= pace dps attest mqttv3 classify redact store
EXCLUDED_store = -E '^testdata/' $(patsubst store/%,-E '^%$$',$(filter-out store/record.go %_test.go,$(wildcard store/*.go)))
mutants: .bin/gremlins
	@$(foreach package,$(MUTANTS),echo '== $(package)'; .bin/gremlins unleash $(EXCLUDED_$(package)) ./$(package) || failed=1;) \
	  [ -z "$$failed" ]

.bin/gremlins: Makefile
	GOBIN=$(CURDIR)/.bin go install $(GREMLINS)
	touch $@

# Each fuzz target for a little while; FUZZTIME=10m for longer.
FUZZTIME ?= 20s
fuzz:
	@for dir in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do \
	  for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6-); do \
	    echo "== $$dir $$target"; go test ./$$dir -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x || exit 1; \
	  done; \
	done

# What becomes of a gateway in every trouble, row by row, and of one whose peer
# stalls at any byte of a session; takes minutes.
test-faults:
	@mkdir -p bin
	@go test -count=1 -v -run '^TestEachFaultIsReportedAndRecoveredFrom$$' ./daemon/ >bin/faults.txt 2>&1; status=$$?; \
	  grep -v '^ *\(===\|--- PASS\)' bin/faults.txt; exit $$status
	DPSD_STALL=every-byte go test -count=1 -run '^TestPromise6NothingHangs$$' ./daemon/

# dpsd as a service of a machine in QEMU that boots with a wrong clock, which is
# then set; a minute or two. The machine is made of Debian's packages, once a week.
MACHINE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dpsd/machine
test-clock: build
	timeout 300 test/qemu/machine '$(MACHINE)'
	DPSD_MACHINE='$(MACHINE)' timeout 600 go test -count=1 -v ./test/qemu/

# What a registration costs, against the budgets, and what one simulator carries.
# BENCHFLAGS='-document docs/performance.md' puts the first tables into the page,
# LOADFLAGS likewise the second; BENCHFLAGS=-short takes one minute instead of eleven.
bench: build benches
	bin/bench/bench $(BENCHFLAGS)
	bin/bench/load $(LOADFLAGS)

# A module of its own, whose dependencies are not dpsd's. The programs run from here.
benches:
	go build -C bench -o '$(CURDIR)/bin/bench/' ./...

# dpsd beside Microsoft's SDKs for Node and Python, which are installed for it; ten
# minutes. Table and plot go into the page; COMPAREFLAGS= prints the table only.
COMPAREFLAGS ?= -document docs/performance.md
compare: build benches
	.ci/need compare
	bin/bench/bench -compare $(COMPAREFLAGS)

# What ten thousand gateways do to the service, in virtual time: the runs behind the
# default delays. FLEETFLAGS='-document docs/performance.md' puts tables and plots
# into the page; -large rehearses a million too.
fleet: benches
	bin/bench/fleet $(FLEETFLAGS)

# The rehearsal against 200 real processes and the real simulator, two minutes.
fleet-check:
	DPSD_FLEET=200 go test -count=1 -v ./test/fleet/

# The built dpsd for an hour of real time with a service that does wrong at
# random: what it holds at the start and at the end. SOAK=2m for a short one.
SOAK ?= 60m
soak: build benches
	bin/bench/soak -for $(SOAK)

# The Debian packages, with checksums and a bill of materials for each: in DIST,
# for ARCHS, as VERSION. See packaging/deb/README.md.
ARCHS ?= amd64 arm64 armhf riscv64
DIST  ?= dist
deb:
	.ci/need deb
	packaging/deb/build '$(VERSION)' '$(DIST)' $(ARCHS)

# Debian's checkers, images, other architectures, a second build with the same
# bytes. ROOTS has the root file systems of Debian 12 and 13, made once a week.
ROOTS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dpsd/roots
test-deb: deb
	.ci/need test-deb
	timeout 600 test/system/roots '$(ROOTS)'
	DPSD_DIST='$(abspath $(DIST))' DPSD_VERSION='$(VERSION)' DPSD_ROOTS='$(ROOTS)' timeout 1200 go test -count=1 -v ./test/deb/

# "make demo" and "make test" where a newcomer types them: by an ordinary user on a small
# Debian 13, and by root on a small Debian 12, both in a fresh clone of the last commit.
test-newcomer:
	timeout 3600 test/newcomer/run '$(ROOTS)'

# What an operator gets: the packages, installed in a Debian 12 and a Debian 13
# that systemd-nspawn boots, as root. The previous version is the same tree under
# a version that goes before. TESTFLAGS='-run Upgrade' for some of it.
ARCH     := $(shell dpkg --print-architecture 2>/dev/null)
CURRENT   = bin/system/current/dpsd_$(VERSION)_$(ARCH).deb
PREVIOUS  = bin/system/previous/dpsd_$(VERSION)~prev_$(ARCH).deb
TESTFLAGS ?=
test-system: build
	timeout 900 test/system/roots '$(ROOTS)'
	if [ -e '$(ROOTS)/trixie.key' ]; then $(MAKE) $(CURRENT) $(PREVIOUS); fi
	CGO_ENABLED=0 go build -o bin/system/ ./test/system/hold ./test/system/probe
	{ DPSD_ROOTS='$(ROOTS)' timeout 900 go test -count=1 -parallel 4 -v $(TESTFLAGS) ./test/system/; echo $$? >bin/system/status; } | \
	  grep -v '^=== '; exit $$(cat bin/system/status)

# A version names a commit; what nobody committed is packed anew.
$(CURRENT) $(PREVIOUS): $(if $(findstring dirty,$(VERSION)),always)
	rm -rf $(@D)
	$(MAKE) deb ARCHS=$(ARCH) DIST=$(@D) VERSION='$(patsubst dpsd_%_$(ARCH).deb,%,$(@F))'
always:

clean:
	rm -rf bin dist
