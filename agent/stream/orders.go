package stream

import (
	"context"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// orders are the commands that wait or are being carried out, and the results to send. They belong to the client, not
// to a session: a command that has begun is finished whatever becomes of the stream that brought it. A result that is
// lost with a stream is asked for again: the control plane sends the command again, and the sink remembers.
type orders struct {
	queue   []*fleetbanv1.Command
	inHand  map[string]bool
	results []*fleetbanv1.CommandResult
	working bool
}

// maxOrders bounds the commands that wait on one host. The rest is left to be sent again.
const maxOrders = 256

func (c *Client) order(ctx context.Context, command *fleetbanv1.Command) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.orders
	if o.inHand == nil {
		o.inHand = map[string]bool{}
	}
	if len(o.queue) >= maxOrders || o.inHand[command.GetCommandId()] {
		return
	}
	o.inHand[command.GetCommandId()] = true
	o.queue = append(o.queue, command)
	if !o.working {
		o.working = true
		go c.work(context.WithoutCancel(ctx))
	}
}

// work carries out what is queued, one after the other, then ends.
func (c *Client) work(ctx context.Context) {
	for {
		c.mu.Lock()
		o := &c.orders
		if len(o.queue) == 0 {
			o.working = false
			c.mu.Unlock()
			return
		}
		command := o.queue[0]
		o.queue = o.queue[1:]
		c.mu.Unlock()

		result := c.cfg.Sink.Execute(ctx, command, c.clock.nowMS())

		c.mu.Lock()
		delete(o.inHand, command.GetCommandId())
		if result != nil {
			o.results = append(o.results, result)
		}
		s := c.current
		c.mu.Unlock()
		if s != nil {
			s.poke(nil)
		}
	}
}

func (c *Client) takeResults() []*fleetbanv1.CommandResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.orders.results
	c.orders.results = nil
	return r
}
