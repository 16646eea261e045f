//! The live handover, step by step, where changes can be applied to shadows.

use mirror_operator::{
    api::resync::Handover,
    brief::Brief,
    destination::{Applier, Cell, Counts, Destination, Error, RowChange},
    postgres::Lsn,
    table::TableSchema,
};

use crate::{
    fixture::{Fixture, boundary, from_loaded, made, open, table, until_loaded, whole},
    on_postgres::OnPostgres,
};

fn orders() -> TableSchema {
    table(0, "orders", &["id bigint!", "name text"])
}

fn live(place: &OnPostgres, epoch: u32) -> Brief {
    Brief { handover: Handover::Live, previous_epoch: 1, ..place.brief(epoch) }
}

/// Applies one row and commits at this position.
async fn apply(applier: &mut dyn Applier, id: &str, position: u64) -> Result<(), Error> {
    let row = vec![Cell::Text(id.to_string().into()), Cell::Text("new".into())];
    let counts = Counts { inserts: 1, ..Counts::default() };
    applier.write(&orders(), vec![RowChange::Upsert { row, deleted: false }], vec![made(position)], counts).await?;
    applier.commit(Lsn(position)).await
}

/// A new epoch, loaded, beside the first one.
async fn loaded(place: &OnPostgres, epoch: u32) -> Box<dyn Destination> {
    let at = open(&live(place, epoch)).await;
    until_loaded(&*at, &[(orders(), &["1\tone"])]).await;
    at.seal().await.unwrap();
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn both_epochs_apply_until_the_handover_and_the_new_one_until_it_has_caught_up() {
    let place = OnPostgres::new().await;
    let old = open(&place.brief(1)).await;
    whole(&*old, &[(orders(), &["1\tone"])]).await;
    let new = loaded(&place, 2).await;
    let (mut of_old, mut of_new) = (old.applier().await.unwrap(), new.applier().await.unwrap());
    assert_eq!(of_new.position(), boundary(1).lsn);
    apply(&mut *of_old, "2", 1100).await.unwrap();
    apply(&mut *of_new, "2", 1100).await.unwrap();
    apply(&mut *of_old, "3", 1200).await.unwrap();
    assert_eq!(place.read("orders", &["id"]).await, ["1|f", "2|f", "3|f"]);
    assert_eq!(place.read("orders_resync", &["id"]).await, ["1|f", "2|f"]);
    assert!(!new.catch_up(Lsn(9999)).await.unwrap(), "nothing was handed over");

    for _ in 0..2 {
        new.hand_over().await.unwrap();
    }
    let refused = apply(&mut *of_old, "4", 1300).await;
    assert!(matches!(refused, Err(Error::Superseded(2))), "{refused:?}");
    let state = old.state().await.unwrap().unwrap();
    assert!(state.may_return && state.newest_epoch == 2, "{state:?}");
    assert!(!new.catch_up(Lsn(0)).await.unwrap(), "the old one has a row more");
    apply(&mut *of_new, "3", 1200).await.unwrap();
    for _ in 0..2 {
        assert!(new.catch_up(Lsn(0)).await.unwrap());
    }
    assert!(apply(&mut *of_new, "5", 1400).await.is_err(), "whoever is still at it commits nothing");
    assert!(matches!(new.applier().await, Err(Error::Transient(_))), "nor does anybody who comes now");

    from_loaded(&*new).await.unwrap();
    assert!(!old.state().await.unwrap().unwrap().may_return);
    let mut applier = new.applier().await.unwrap();
    assert_eq!(applier.position(), Lsn(1200));
    apply(&mut *applier, "5", 1400).await.unwrap();
    assert_eq!(place.read("orders", &["id"]).await, ["1|f", "2|f", "3|f", "5|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_that_is_given_up_gives_the_stream_back() {
    let place = OnPostgres::new().await;
    let old = open(&place.brief(1)).await;
    whole(&*old, &[(orders(), &["1\tone"])]).await;
    for (epoch, handed_over) in [(2, false), (3, true)] {
        let new = loaded(&place, epoch).await;
        if handed_over {
            new.hand_over().await.unwrap();
        }
        for _ in 0..2 {
            new.abandon().await.unwrap();
        }
        let mut applier = old.applier().await.unwrap();
        let (id, next) = (format!("{epoch}"), applier.position().0 + 100);
        apply(&mut *applier, &id, next).await.unwrap();
        // A pod of it that nobody could stop.
        assert!(new.begin().await.is_err() && new.hand_over().await.is_err());
        assert!(!new.catch_up(Lsn(9999)).await.unwrap());
        apply(&mut *applier, &id, next + 1).await.unwrap();
    }
    assert_eq!(place.read("orders", &["id"]).await, ["1|f", "2|f", "3|f"]);
    assert_eq!(place.tables().await, ["orders"]);
    // An epoch of the other kind fences as ever.
    let next = open(&Brief { previous_epoch: 1, ..place.brief(4) }).await;
    next.begin().await.unwrap();
    let state = old.state().await.unwrap().unwrap();
    assert!(state.newest_epoch == 4 && !state.may_return, "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hand_over_and_catch_up_survive_every_lost_reply() {
    let place = OnPostgres::new().await;
    whole(&*open(&place.brief(1)).await, &[(orders(), &["1\tone"])]).await;
    let mut epoch = 1;
    for step in ["hand over", "catch up", "abandon"] {
        for n in 1.. {
            epoch += 1;
            let brief = Brief { previous_epoch: epoch - 1, ..live(&place, epoch) };
            let at = open(&brief).await;
            until_loaded(&*at, &[(orders(), &["1\tone"])]).await;
            at.seal().await.unwrap();
            if step != "hand over" {
                at.hand_over().await.unwrap();
            }
            let (cut_brief, has_cut) = place.through_cut(brief, n).await;
            let cut = open(&cut_brief).await;
            let outcome = match step {
                "hand over" => cut.hand_over().await,
                "catch up" => cut.catch_up(Lsn(9999)).await.map(drop),
                _ => cut.abandon().await,
            };
            assert!(outcome.is_ok() || has_cut() && matches!(outcome, Err(Error::Transient(_))), "{step}, request {n}: {outcome:?}");
            if step == "abandon" {
                at.abandon().await.unwrap();
                epoch -= 1;
                let state = open(&place.brief(epoch)).await.state().await.unwrap().unwrap();
                assert_eq!((state.newest_epoch, state.may_return), (epoch, false), "{step}, request {n}");
                epoch += 1;
                whole(&*open(&place.brief(epoch + 1)).await, &[(orders(), &["1\tone"])]).await;
                epoch += 1;
            } else {
                at.hand_over().await.unwrap();
                assert!(at.catch_up(Lsn(9999)).await.unwrap(), "{step}, request {n}");
                from_loaded(&*at).await.unwrap();
            }
            assert_eq!(place.read("orders", &["id"]).await, ["1|f"], "{step}, request {n}");
            if !has_cut() {
                assert!(n > 2, "{step} asked for nothing");
                break;
            }
        }
    }
}
