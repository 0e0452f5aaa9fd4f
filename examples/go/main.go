// Ask llm-routerd with go-redis: go build && ./ask ["a prompt" [id]]
//
// Exit code: 0 a result, 1 an error, 2 a cancellation, 69 no Redis for half a minute.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const tries = 30

type data struct {
	Text    string
	RawText string `json:"raw_text"`
	Attempt int
	Message string
	Reason  string
}

// patiently repeats a command while Redis is away. An XADD too: two entries with one id are one request.
func patiently[T any](command func() (T, error)) T {
	for range tries {
		reply, err := command()
		if err == nil || err == redis.Nil {
			return reply
		}
		if _, refused := err.(redis.Error); refused {
			log.Fatal(err)
		}
		fmt.Fprintf(os.Stderr, "[%v; trying again]\n", err)
		time.Sleep(time.Second)
	}
	os.Exit(69)
	panic("unreachable")
}

func main() {
	arguments := append(os.Args, "", "")
	prompt := cmp.Or(arguments[1], "Why is the sky blue?")
	id := cmp.Or(arguments[2], fmt.Sprintf("go-%d-%d", os.Getpid(), time.Now().UnixNano()))
	options, err := redis.ParseURL(cmp.Or(os.Getenv("REDIS_URL"), "redis://127.0.0.1:6379/0"))
	if err != nil {
		log.Fatal(err)
	}
	ctx, client := context.Background(), redis.NewClient(options)
	request := &redis.XAddArgs{Stream: "llm:requests", Values: []string{"id", id, "prompt", prompt, "stream", "true"}}
	patiently(func() (string, error) { return client.XAdd(ctx, request).Result() })

	lastID := "0" // where to go on, also after a lost connection
	shown := 0    // the attempt whose text is on the screen
	for {
		streams := patiently(func() ([]redis.XStream, error) {
			position := []string{"llm:events:" + id, lastID}
			return client.XRead(ctx, &redis.XReadArgs{Streams: position, Block: 5 * time.Second}).Result()
		})
		for _, entry := range append(streams, redis.XStream{})[0].Messages {
			lastID = entry.ID
			kind, event := entry.Values["type"], data{}
			_ = json.Unmarshal([]byte(entry.Values["data"].(string)), &event)
			if shown > 0 && (kind == "rejected" || kind == "attempt" || kind == "result" && event.Attempt != shown) {
				fmt.Print("\n[discarded]\n")
				shown = 0
			}
			switch kind {
			case "token":
				fmt.Print(event.Text)
				attempt, _, _ := strings.Cut(lastID, "-")
				shown, _ = strconv.Atoi(attempt)
			case "result":
				if shown == 0 {
					fmt.Print(event.RawText)
				}
				fmt.Println()
				os.Exit(0)
			case "error", "cancelled":
				fmt.Fprintf(os.Stderr, "\n%s: %s\n", kind, event.Message+event.Reason)
				os.Exit(map[any]int{"error": 1, "cancelled": 2}[kind])
			}
		}
	}
}
