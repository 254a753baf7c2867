// drive SOCKET: a question a line on stdin, `view=lookup&to=…`, after `ready` an answer a line on stdout, both as forms.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"sidetone"
)

func main() {
	s := sidetone.New(os.Args[1])
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		call, err := url.ParseQuery(lines.Text())
		if err != nil {
			panic(err)
		}
		view, to := call.Get("view"), call.Get("to")
		call.Del("view")
		call.Del("to")
		ask := s.Lookup
		if view == "resolve" {
			ask = s.Resolve
		}
		fmt.Println(strings.ReplaceAll(told(ask(context.Background(), to, call)).Encode(), "+", "%20"))
	}
}

func told(answer *sidetone.Answer, err error) url.Values {
	var no *sidetone.Refused
	var away *sidetone.Unavailable
	switch {
	case errors.As(err, &no):
		return url.Values{"kind": {"refused"}, "status": {no.Status}}
	case errors.As(err, &away):
		return url.Values{"kind": {"unavailable"}, "status": {away.Status}, "wait": {fmt.Sprint(away.RetryAfter.Seconds())}}
	case err != nil:
		panic(err)
	}
	stale := "0"
	if answer.Stale {
		stale = "1"
	}
	secret, _ := answer.Credentials["openai"]["default"].(string)
	return url.Values{
		"kind": {"answer"}, "status": {answer.Status}, "language": {answer.Language}, "label": {answer.Label}, "stale": {stale},
		"prompt_ids": {answer.Prompt.IDs}, "system": {answer.Prompt.System}, "secret": {secret},
	}
}
