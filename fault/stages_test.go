package fault_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/fault"
)

// stages returns the stages that fault.go declares.
func stages(t *testing.T) (all []fault.Stage) {
	t.Helper()
	source, err := os.ReadFile("fault.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, declared := range regexp.MustCompile(`(?m)^\tStage\w+ +Stage = "(.+?)"`).FindAllSubmatch(source, -1) {
		all = append(all, fault.Stage(declared[1]))
	}
	if !slices.Contains(all, fault.StageConfiguration) || !slices.Contains(all, fault.StageState) {
		t.Fatalf("only %q were found in fault.go", all)
	}
	return all
}

func TestEveryStageHasDistinctWords(t *testing.T) {
	seen := map[string]fault.Stage{}
	for _, s := range stages(t) {
		words := s.Doing()
		if words == string(s) || words == "" || seen[words] != "" {
			t.Errorf("stage %s: %q, as stage %q", s, words, seen[words])
		}
		seen[words] = s
	}
	if got := fault.Stage("unheard-of").Doing(); got != "unheard-of" {
		t.Errorf("a stage of a newer dpsd: %q", got)
	}
}

// The log, dpsd status and dpsd check contain the words for a stage. A second table of them
// once had other words for the same stage.
func TestNoOtherPackageHasWordsForStages(t *testing.T) {
	files, all := 0, stages(t)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if path == "../bench" {
			return fs.SkipDir // a separate program, which counts registrations
		}
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || filepath.Dir(path) == "../fault" {
			return err
		}
		files++
		source := token.NewFileSet()
		file, err := parser.ParseFile(source, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if n != nil && wordsForStage(n, all) {
				t.Errorf("%s: words for a stage; use fault.Stage.Doing", source.Position(n.Pos()))
			}
			return true
		})
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d files were read, %v", files, err)
	}
}

// wordsForStage reports whether n is one of the texts of this package, an entry of a map
// from stages to texts, or a case of a switch that selects a text by stage.
func wordsForStage(n ast.Node, stages []fault.Stage) bool {
	switch n := n.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(n.Value)
		return err == nil && slices.ContainsFunc(stages, func(s fault.Stage) bool { return s.Doing() == text })
	case *ast.KeyValueExpr:
		return isStage(n.Key) && isText(n.Value)
	case *ast.CaseClause:
		if !slices.ContainsFunc(n.List, isStage) {
			return false
		}
		for _, s := range n.Body {
			switch s := s.(type) {
			case *ast.ReturnStmt:
				return slices.ContainsFunc(s.Results, isText)
			case *ast.AssignStmt:
				return slices.ContainsFunc(s.Rhs, isText)
			}
		}
	}
	return false
}

func isStage(e ast.Expr) bool {
	name, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	of, ok := name.X.(*ast.Ident)
	return ok && of.Name == "fault" && strings.HasPrefix(name.Sel.Name, "Stage")
}

func isText(e ast.Expr) bool {
	literal, ok := e.(*ast.BasicLit)
	return ok && literal.Kind == token.STRING
}
