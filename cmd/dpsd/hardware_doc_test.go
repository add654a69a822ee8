package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestEveryCommandOnThePageAboutHardwareKeysExists(t *testing.T) {
	page, err := os.ReadFile("../../docs/hardware-keys.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, m := range regexp.MustCompile("(?m)\\bdpsd ((?:tpm|check|forget|derive-key)\\b[^|'`#\n]*)").FindAllStringSubmatch(string(page), -1) {
		line, _, _ := strings.Cut(m[1], ">")
		line, _, _ = strings.Cut(line, "<")
		var args []string
		for _, word := range strings.Fields(line) {
			if word[0] != '-' && !regexp.MustCompile(`^[-a-z0-9$/._A-Z]+$`).MatchString(word) {
				break // the sentence continues
			}
			args = append(args, word)
		}
		found++
		command, rest, err := rootCommand().Find(args)
		if err == nil {
			err = command.ParseFlags(rest)
		}
		if err != nil || command.Name() == "dpsd" {
			t.Errorf("dpsd %s: %v", m[1], err)
		}
	}
	if found < 15 {
		t.Errorf("only %d commands were found", found)
	}
}
