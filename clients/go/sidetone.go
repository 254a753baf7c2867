// Package sidetone asks sidetone how a call is to be handled. Go 1.18 or newer, standard library only.
//
//	s := sidetone.New("/run/sidetone/sidetone.sock")
//	answer, err := s.Resolve(ctx, number, url.Values{"event_type": {"door_open"}, "zone": {"Z1", "Z2"}, "include": {"credentials"}})
//	var no *sidetone.Refused
//	switch {
//	case err == nil:
//		if answer.Stale {
//			log.Printf("answer is %d ms old", answer.StalenessMs)
//		}
//		start(answer.Language, answer.Prompt.System, answer.Credentials["openai"]["default"])
//	case errors.As(err, &no): // sidetone says no: unknown_number, inactive_number, tenant_suspended, ...
//		hangUp(no.Status)
//	default: // *sidetone.Unavailable: sidetone cannot say; your fallback, never "no such number"
//		start(defaultLanguage)
//	}
//
// An answer with credentials is not to be logged.
package sidetone

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Answer holds the fields most callers want; add others as they stand in the JSON.
type Answer struct {
	Status, Number, Label, Language, Voice, Timezone, Model, Revision string

	Tenant struct{ ID, Slug, Name string }
	Prompt struct{ IDs, System string }

	BusinessHours         string `json:"business_hours"`
	TranscriptionProvider string `json:"transcription_provider"`
	RecordingEnabled      bool   `json:"recording_enabled"`
	Stale                 bool
	StalenessMs           int64 `json:"staleness_ms"`
	Credentials           map[string]map[string]any
}

// Refused: sidetone says no; asking again does not help.
type Refused struct{ Status string }

func (r *Refused) Error() string { return "sidetone: " + r.Status }

// Unavailable: sidetone cannot say. Nothing is asked before RetryAfter has passed, where it is not 0.
type Unavailable struct {
	Status     string
	RetryAfter time.Duration
}

func (u *Unavailable) Error() string { return "sidetone: " + u.Status }

// Sidetone may be used by any number of goroutines.
type Sidetone struct {
	http      http.Client
	mutex     sync.Mutex
	away      string
	notBefore time.Time
}

// New asks over a Unix socket: a quarter of a second to connect, a second for the whole question.
// A connection that sidetone had closed while it was kept is replaced by net/http itself.
func New(path string) *Sidetone {
	dialer := net.Dialer{Timeout: 250 * time.Millisecond}
	return &Sidetone{http: http.Client{Timeout: time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
		MaxIdleConnsPerHost: 16,
		DisableCompression:  true,
	}}}
}

// Lookup gives the short view. call holds the parameters of the call; it may be nil.
func (s *Sidetone) Lookup(ctx context.Context, to string, call url.Values) (*Answer, error) {
	return s.ask(ctx, "/v1/lookup", to, call)
}

// Resolve gives the full view, with the prompts, and with include=credentials the credentials.
func (s *Sidetone) Resolve(ctx context.Context, to string, call url.Values) (*Answer, error) {
	return s.ask(ctx, "/v1/resolve", to, call)
}

func (s *Sidetone) ask(ctx context.Context, route, to string, call url.Values) (*Answer, error) {
	s.mutex.Lock()
	away, wait := s.away, time.Until(s.notBefore)
	s.mutex.Unlock()
	if wait > 0 { // as Retry-After said
		return nil, &Unavailable{away, wait}
	}
	query := url.Values{"to": {to}}
	for name, values := range call {
		query[name] = values
	}
	// Encode writes a space as +, which sidetone takes as +.
	target := "http://localhost" + route + "?" + strings.ReplaceAll(query.Encode(), "+", "%20")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	var answer Answer
	reply, err := s.http.Do(request)
	if err == nil {
		defer reply.Body.Close()
		err = json.NewDecoder(reply.Body).Decode(&answer)
	}
	var timeout net.Error
	switch {
	case err == nil:
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, &Unavailable{Status: "timeout"}
	default: // not there, or somebody else answers
		return nil, &Unavailable{Status: "unreachable"}
	}
	switch answer.Status {
	case "ok":
		if reply.StatusCode == http.StatusOK {
			return &answer, nil
		}
	case "unknown_number", "inactive_number", "tenant_suspended", "invalid_number", "bad_request":
		return nil, &Refused{answer.Status}
	}
	seconds, _ := strconv.Atoi(reply.Header.Get("Retry-After"))
	retryAfter := time.Duration(seconds) * time.Second
	if answer.Status == "not_ready" || answer.Status == "overloaded" {
		if retryAfter > time.Minute {
			retryAfter = time.Minute
		}
		s.mutex.Lock()
		s.away, s.notBefore = answer.Status, time.Now().Add(retryAfter)
		s.mutex.Unlock()
	}
	return nil, &Unavailable{answer.Status, retryAfter}
}
