package auth

import (
	"context"
	"sync"
	"testing"
)

// Calls that come while a look is under way share the next one, never that one: what changed before a call is seen by it.
func TestSharedLooks(t *testing.T) {
	t.Parallel()
	var s shared[int]
	var mu sync.Mutex
	looks := 0
	began, goOn := make(chan struct{}, 100), make(chan struct{}) // more than there can be looks
	look := func(context.Context) (int, error) {
		mu.Lock()
		looks++
		n := looks
		mu.Unlock()
		began <- struct{}{}
		<-goOn
		return n, nil
	}
	first := make(chan int)
	go func() {
		n, _ := s.do(t.Context(), "k", look)
		first <- n
	}()
	<-began
	const others = 20
	got := make(chan int, others)
	for range others {
		go func() {
			n, _ := s.do(t.Context(), "k", look)
			got <- n
		}()
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	if _, err := s.do(left, "k", look); err == nil {
		t.Error("who has left got an answer")
	}
	goOn <- struct{}{}
	if n := <-first; n != 1 {
		t.Errorf("the first got look %d", n)
	}
	close(goOn)
	for range others {
		if n := <-got; n < 2 {
			t.Errorf("one that came during look 1 got look %d", n)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if looks > others+2 {
		t.Errorf("%d looks", looks)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for range s.running {
		t.Error("a look is left")
	}
}
